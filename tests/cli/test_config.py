import pytest

from eagle_hf.cli.config import with_config


def test_options_of_the_file_come_before_those_of_the_command_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "target: org/model\nloss: kl\nfeature_layer_ids: [2, 8]\npacking: true\nbf16: false\nhead: null\n"
    )
    config = str(tmp_path / "recipe.yaml")
    assert with_config(["train", "--config", config, "--loss", "lk_alpha"]) == [
        "train", "--target", "org/model", "--loss", "kl", "--feature_layer_ids", "2", "8", "--packing",
        "--bf16", "False", "--config", config, "--loss", "lk_alpha",
    ]  # fmt: skip
    assert with_config(["train", "--loss", "kl"]) == ["train", "--loss", "kl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "is not valid YAML"), ("- a", "holds a list"), ("", "holds a NoneType")],
)
def test_what_is_no_mapping_is_refused(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(OSError, match=message):
        with_config(["train", "--config", str(tmp_path / "recipe.yaml")])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere.yaml"):
        with_config(["train", "--config", str(tmp_path / "nowhere.yaml")])
