"""Loading a head in any published layout, saving it, and pushing it to the Hub."""

import os
from pathlib import Path
from typing import Any, Self

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..checkpoints import read_checkpoint
from ..checkpoints.validation import check_tensors
from ..configuration_eagle import EagleConfig
from ..hub.training_facts import FILE as TRAINING_RECORD
from ..hub.training_facts import TrainingFacts
from .attention import attention_function


class PublishedHead(PreTrainedModel):
    """
    A head as repositories hold it: whatever their layout, with the record of its training.

    Attributes:
        has_explicit_device, has_explicit_dtype (`bool`):
            Whether the user chose them when loading. Otherwise `generate` brings the head to those of its target.
    """

    has_explicit_device = has_explicit_dtype = False
    _training_record: str | None = None  # as it was read: a later version can read what this one cannot

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: EagleConfig | None = None,
        generation_config: GenerationConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: str | dict | torch.device | int | None = None,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        feature_layer_ids: list[int] | None = None,
        allow_non_finite: bool = False,
        **kwargs: Any,
    ) -> Self:
        """
        Loads a head from the Hub or a folder, in any published layout. Safetensors are preferred; PyTorch files are
        read with `weights_only=True`. Code in a repository is never executed.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Repository id on the Hub, or a folder.
            config ([`EagleConfig`], *optional*): Used instead of what the repository says.
            generation_config ([`~transformers.GenerationConfig`], *optional*): How to draft; likewise.
            dtype (`torch.dtype` or `str`, *optional*):
                Dtype of the head. By default that of the file, and in `generate` that of the target.
            device_map (`str`, `dict`, `torch.device` or `int`, *optional*):
                Where to put the head. By default, in `generate`, the target's device.
            revision, subfolder, token, cache_dir, force_download, local_files_only: As in `transformers`.
            feature_layer_ids (`list[int]`, *optional*):
                Hidden states of the target that the head reads, if the repository is wrong about them; see
                [`EagleConfig`].
            kwargs: Other fields of [`EagleConfig`], likewise, such as `norm_output` or `mask_token_id`; and
                `attn_implementation`, `"sdpa"` (the default) or `"eager"`.
            allow_non_finite (`bool`, *optional*, defaults to `False`):
                Whether weights that are NaN or infinite are let through, to look into a head that went wrong.

        Raises:
            `OSError`: if a file is missing, damaged, or unsafe to read.
            `ValueError`: if the layout is unknown, or a tensor is missing, unexpected, mis-shaped or not finite; or if
                heads have no such attention.
        """
        for name in ("_from_auto", "adapter_kwargs", "trust_remote_code"):  # what Auto classes pass; nothing is remote
            kwargs.pop(name, None)
        attention_function(kwargs.get("attn_implementation"))  # before anything is fetched
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in EagleConfig.__annotations__}
        if feature_layer_ids is not None:
            overrides["feature_layer_ids"] = feature_layer_ids
        checkpoint = read_checkpoint(
            pretrained_model_name_or_path,
            config=config,
            overrides=overrides,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_non_finite=allow_non_finite,
        )
        with torch.device("meta"):
            expected = cls(checkpoint.config).state_dict()
        check_tensors(checkpoint.weights, expected, checkpoint.source)
        model = super().from_pretrained(
            None, config=checkpoint.config, state_dict=checkpoint.weights, dtype=dtype, device_map=device_map, **kwargs
        )
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        model.generation_config = generation_config or checkpoint.generation_config or model.generation_config
        model.has_explicit_dtype, model.has_explicit_device = dtype is not None, device_map is not None
        model._training_record = checkpoint.training_record
        return model

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves configuration, weights (safetensors), `generation_config` and `training.json`. As in `transformers`."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self.generation_config.save_pretrained(save_directory)
            record = Path(save_directory) / TRAINING_RECORD
            if self._training_record is not None:
                record.write_text(self._training_record, encoding="utf-8")
            else:
                record.unlink(missing_ok=True)  # that of a head which was here before

    @property
    def training_facts(self) -> TrainingFacts | None:
        """
        How the head was trained, as `training.json` beside its weights records it. What is set here is saved.

        Raises:
            `ValueError`: if there is a record that cannot be read; says why.
        """
        if self._training_record is None:
            return None
        return TrainingFacts.from_json(self._training_record, f"{TRAINING_RECORD} of {self.name_or_path or 'the head'}")

    @training_facts.setter
    def training_facts(self, facts: TrainingFacts | None) -> None:
        self._training_record = None if facts is None else facts.to_json()

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """
        Pushes to the Hub in one commit, with a model card; arguments as in [`~eagle_hf.hub.publishing.push_head`].
        """
        from ..hub.publishing import push_head  # the Hub's client is imported by who publishes

        return push_head(self, repo_id, **kwargs)
