import shutil
import subprocess

import pytest

from invnext_jax.checkpointing import git_hash

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Makes a checkout with one commit, and returns its folder and the hash."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    root = tmp_path / "checkout"
    root.mkdir()

    def git(*command):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *identity, "-C", str(root), *command]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    (root / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    git_hash.read_git_hash.cache_clear()
    yield root, git
    git_hash.read_git_hash.cache_clear()


def test_hash_and_modification(checkout):
    root, git = checkout
    commit = git("rev-parse", "HEAD")
    assert git_hash.read_git_hash(root) == commit
    (root / "file").write_text("2")
    git_hash.read_git_hash.cache_clear()
    assert git_hash.read_git_hash(root) == commit + "+"


def test_checkout_of_another_user(checkout, monkeypatch):
    root, git = checkout
    commit = git("rev-parse", "HEAD")
    # Git reads this variable when it checks the owner.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(subprocess.CalledProcessError):
        git("rev-parse", "HEAD")
    assert git_hash.read_git_hash(root) == commit


@pytest.mark.parametrize("kind", ["branch", "packed", "detached", "worktree"])
def test_without_git_the_modification_is_unknown(checkout, monkeypatch, kind):
    root, git = checkout
    commit = git("rev-parse", "HEAD")
    if kind == "packed":
        git("pack-refs", "--all")
    elif kind == "detached":
        git("checkout", commit)
    elif kind == "worktree":
        git("worktree", "add", str(root.parent / "other"))
        root = root.parent / "other"
    monkeypatch.setenv("PATH", str(root))
    assert git_hash.read_git_hash(root) == commit + "?"


def test_a_damaged_checkout_has_no_hash_and_the_warning_says_why(checkout, caplog):
    root, _ = checkout
    (root / ".git/HEAD").write_text("ref: refs/heads/absent\n")
    assert git_hash.read_git_hash(root) == ""
    assert f"the git commit of {root} is not recorded: git: fatal:" in caplog.text


def test_outside_a_checkout_there_is_no_hash(tmp_path, caplog):
    assert git_hash.read_git_hash(tmp_path) == ""
    assert not caplog.records
