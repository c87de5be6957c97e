"""Whatever ends a process while it saves, the newest complete checkpoint is found and is whole."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from safetensors.torch import load_file
from tiny_training import make_trainer

from eagle_hf import EagleDraftModel
from eagle_hf.training import durable_checkpoints
from eagle_hf.training.durable_checkpoints import complete_checkpoints, find_problem, recover


SCRIPT = Path(__file__).parent / "run_training.py"


def run(output: Path, *flags: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(output), json.dumps(settings), *flags],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing interrupts: the head, and where its checkpoints are."""
    output = tmp_path_factory.mktemp("straight")
    result = run(output)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(output / "final" / "model.safetensors"), output


# Saving twice, at steps 2 and 4, does about 45 operations on files; some are first or last of a save.
@pytest.mark.parametrize("operation", [1, 6, 12, 20, 24, 27, 33, 40, 46])
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(tmp_path, straight, operation):
    killed = run(tmp_path, "--kill-at", str(operation))
    assert killed.returncode == -9, f"the run ended before operation {operation}: {killed.stderr[-2000:]}"
    for folder in tmp_path.glob("checkpoint-*"):  # what has its final name is complete
        assert find_problem(folder) is None
    resumed = run(tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    weights = load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in straight[0].items())  # bit for bit
    assert not list(tmp_path.glob(".saving-*"))
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


def test_what_was_complete_but_not_renamed_is_put_in_place(tmp_path, straight):
    staged = tmp_path / ".saving-checkpoint-4" / "checkpoint-4"
    staged.parent.mkdir()
    shutil.copytree(straight[1] / "checkpoint-4", staged)
    (tmp_path / ".saving-checkpoint-6" / "checkpoint-6").mkdir(parents=True)
    recover(tmp_path)
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-4"]
    assert not list(tmp_path.glob(".saving-*"))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors has 1 bytes instead of"),
        (lambda folder: (folder / durable_checkpoints.MARKER).unlink(), "saving was not finished"),
        (lambda folder: (folder / durable_checkpoints.MARKER).write_text("{"), "cannot be read"),
    ],
    ids=["missing file", "truncated file", "no marker", "truncated marker"],
)
def test_incomplete_checkpoints_are_skipped_and_refused(tmp_path, spoil, problem):
    target = tiny_target("llama")
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, target, random_draft(target), **settings).train()
    spoil(tmp_path / "checkpoint-4")
    assert problem in find_problem(tmp_path / "checkpoint-4")
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    trainer = make_trainer(tmp_path, target, random_draft(target), **settings)
    with pytest.raises(ValueError, match=r"checkpoint-4 is not a complete checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_nothing_to_resume_from_is_said(tmp_path):
    target = tiny_target("llama")
    with pytest.raises(ValueError, match="no complete checkpoint"):
        make_trainer(tmp_path, target, random_draft(target)).train(resume_from_checkpoint=True)


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    target = tiny_target("llama")
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, target, random_draft(target), **settings).train()
    other = make_trainer(tmp_path, target, random_draft(target, intermediate_size=48), **settings, loss="lk_alpha")
    with pytest.raises(ValueError, match=r"`intermediate_size` 64, now 48; `loss` 'cross_entropy', now 'lk_alpha'"):
        other.train(resume_from_checkpoint=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    target = tiny_target("llama")
    trainer = make_trainer(tmp_path, target, random_draft(target), max_steps=6, save_strategy="steps", save_steps=2)
    save, calls = torch.save, []

    def full(*args, **kwargs):
        calls.append(1)
        if trainer.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"step 4 could not be saved.*No space left.*last good checkpoint is .*-2"):
        trainer.train()
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert EagleDraftModel.from_pretrained(tmp_path / "checkpoint-2").device.type == "cpu"


def test_the_newest_and_the_best_checkpoint_are_never_rotated_away(tmp_path):
    for step in (2, 4, 6, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / durable_checkpoints.MARKER).write_text('{"files": {}}')
    durable_checkpoints.rotate(tmp_path, 2, str(tmp_path / "checkpoint-2"))
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-8"]
    durable_checkpoints.rotate(tmp_path, 1, None)
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-8"]


def test_saving_a_step_again_replaces_it(tmp_path):
    final = tmp_path / "checkpoint-2"
    for content in ("old", "new"):
        staged = durable_checkpoints.staging_folder(tmp_path, 2) / "checkpoint-2"
        staged.mkdir(parents=True)
        (staged / "file").write_text(content)
        durable_checkpoints.publish(staged, final, {"run": {}})
    assert (final / "file").read_text() == "new"
    assert find_problem(final) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("refuses", ["open", "fsync"])
def test_checkpoints_are_saved_where_folders_cannot_be_opened_or_flushed(tmp_path, monkeypatch, refuses):
    """Windows opens no folders and flushes no file that was opened for reading; some mounted folders flush nothing."""
    opened, is_folder, flushed = os.open, {}, []

    def open_files_only(path, flags, *args, **kwargs):
        folder = Path(path).is_dir()
        if folder and refuses == "open":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = opened(path, flags, *args, **kwargs)
        is_folder[descriptor] = folder, bool(flags & (os.O_RDWR | os.O_WRONLY))
        return descriptor

    def flush(descriptor):
        folder, may_write = is_folder.get(descriptor, (False, True))
        if folder:
            raise OSError(errno.EINVAL, "Invalid argument")
        if not may_write:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(descriptor)

    monkeypatch.setattr(os, "open", open_files_only)
    monkeypatch.setattr(os, "fsync", flush)
    target = tiny_target("llama")
    trainer = make_trainer(tmp_path, target, random_draft(target), max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert len(flushed) >= 5  # the files all the same


def test_a_disk_that_fails_to_flush_a_file_is_not_overlooked(tmp_path, monkeypatch):
    """Negative control: what is tolerated is that flushing is not known, not that it fails."""
    staged = durable_checkpoints.staging_folder(tmp_path, 2) / "checkpoint-2"
    staged.mkdir(parents=True)
    (staged / "file").write_text("new")

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        durable_checkpoints.publish(staged, tmp_path / "checkpoint-2", {"run": {}})
    assert not (tmp_path / "checkpoint-2").exists()


def test_markers_name_files_as_every_system_reads_them(tmp_path):
    staged = durable_checkpoints.staging_folder(tmp_path, 2) / "checkpoint-2"
    (staged / "inner").mkdir(parents=True)
    (staged / "inner" / "file").write_text("new")
    durable_checkpoints.publish(staged, tmp_path / "checkpoint-2", {"run": {}})
    assert list(durable_checkpoints.read_facts(tmp_path / "checkpoint-2")["files"]) == ["inner/file"]
