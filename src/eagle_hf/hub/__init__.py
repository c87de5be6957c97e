"""The Hub: cards, records and exports."""
