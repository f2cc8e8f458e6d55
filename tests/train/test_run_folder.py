"""The revision in config.yaml, read without git, which runs what a configuration names."""

import os
import shutil
import subprocess

import pytest

from selfsight.train.folder import _git_revision

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git makes the repositories")


def git(folder, *words):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


def test_the_commit_is_that_of_git(repository, monkeypatch):
    (repository / "deep/er").mkdir(parents=True)
    for folder in (repository, repository / "deep/er"):
        monkeypatch.chdir(folder)
        assert _git_revision() == git(repository, "rev-parse", "HEAD")
    git(repository, "pack-refs", "--all")
    assert _git_revision() == git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "-b", "a/branch")
    git(repository, "commit", "-q", "--allow-empty", "-m", "two")
    assert _git_revision() == git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "--detach", "main")
    assert _git_revision() == git(repository, "rev-parse", "HEAD")


def test_a_worktree_has_its_own(repository, tmp_path, monkeypatch):
    git(repository, "worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"))
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "two")
    monkeypatch.chdir(tmp_path / "tree")
    assert _git_revision() == git(tmp_path / "tree", "rev-parse", "HEAD")
    assert _git_revision() != git(repository, "rev-parse", "HEAD")


def test_no_program_of_the_configuration_runs(repository, tmp_path, monkeypatch):
    hook, mark = tmp_path / "hook.sh", tmp_path / "ran"
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(hook))
    mark.unlink(missing_ok=True)
    monkeypatch.chdir(repository)
    assert _git_revision() is not None
    assert not mark.exists()


@pytest.mark.parametrize(
    "head", ["", "nothing", "ref: refs/heads/none", "ref: ../../secret", "ref: refs/../../secret"]
)
def test_a_damaged_repository_has_none(tmp_path, monkeypatch, head):
    (tmp_path / "secret").write_text("0" * 40)
    (tmp_path / "x/.git").mkdir(parents=True)
    (tmp_path / "x/.git/HEAD").write_text(head)
    monkeypatch.chdir(tmp_path / "x")
    assert _git_revision() is None


def test_a_repository_of_pipes_has_none(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git/HEAD")
    monkeypatch.chdir(tmp_path)
    assert _git_revision() is None
