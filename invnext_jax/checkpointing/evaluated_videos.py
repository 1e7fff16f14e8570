"""Identity of the videos of `config.eval`, so that only scores on the same videos are compared.

The metadata of a checkpoint contains it (see `identify`). A resumed run may evaluate other videos;
then the identity also contains the step after which the current videos are used. Checkpoints of
older versions have no identity, and the options in their config are compared instead.
"""

from collections.abc import Mapping
from typing import Any

from invnext_jax import sanitize
from invnext_jax.checkpointing import run_metadata, video_digests
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError

_FIELD = "evaluation"
_HASH = "manifest_sha256"


def identify(config: Any, manifest: Manifest | None) -> dict[str, Any]:
    """Returns the identity of the evaluated videos; {} if there is no evaluation.

    Args:
      config: the run's config.
      manifest: the rows of `config.eval.manifest`; None if it is empty.

    Returns:
      A JSON-compatible dict with the options of the evaluation, the SHA-256 of its manifest,
      digests of its videos, and `since_step`.
    """
    if not config.eval.every_steps:
        return {}
    identity = {"videos": config.eval.videos, "neighbors": config.eval.neighbors}
    identity |= {"manifest": "", _HASH: "", "video_digests": [], "since_step": 0}
    if manifest is None:
        return identity
    files = manifest_lib.find_manifests(config.eval.manifest)
    return identity | {
        "manifest": sanitize.redact_urls(config.eval.manifest),
        _HASH: manifest_lib.hash_manifests(files),
        "video_digests": video_digests.sample_digests(manifest, config.data.clip_seconds),
    }


def check_hosts(first: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Checks that a process evaluates the same videos as process 0, whose metadata is `first`.

    Raises:
      UserError: the content of the manifest or of a video differs.
    """
    theirs, own = first[_FIELD], record[_FIELD]
    if theirs.get(_HASH) != own.get(_HASH):
        raise UserError(
            f"config.eval.manifest={own['manifest']!r} of this process does not have the content "
            f"of {theirs['manifest']!r} of process 0: use the same manifest on all hosts"
        )
    if own:
        video_digests.check_hosts(theirs, own)


def update_record(saved: Mapping[str, Any], record: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Returns the metadata of a resumed run with the step after which its videos are evaluated.

    Args:
      saved: the metadata of the checkpoint.
      record: the metadata of this run.
      step: the step of the checkpoint.
    """
    before, now = _read_saved(saved), record[_FIELD]
    if before and not now:  # a later run may evaluate again
        return {**record, _FIELD: before}
    if before:
        since = step if describe_change(saved, record) else before.get("since_step", 0)
        now = {**now, "since_step": since}
    return {**record, _FIELD: now}


def describe_change(saved: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Describes how the evaluated videos differ from those of a checkpoint; "" if they do not.

    Args:
      saved: the metadata of the checkpoint.
      record: the metadata of this run.
    """
    before, now = _read_saved(saved), record[_FIELD]
    if not before or not now:
        return ""
    changes = [
        f"config.eval.{name}: {before[name]} -> {now[name]}"
        for name in ("videos", "neighbors")
        if before[name] != now[name]
    ]
    compared = _HASH if _HASH in before else "manifest"
    if before[compared] != now[compared]:
        changes.append(f"config.eval.manifest: {before['manifest']!r} -> {now['manifest']!r}")
    elif replaced := video_digests.find_replaced(before, now):
        changes.append(f"the content of {len(replaced)} videos, such as {replaced[0]}")
    if not changes:
        return ""
    return (
        f"the evaluation changed ({'; '.join(changes)}): do not compare the metrics eval/* of "
        "earlier and later steps, and do not select checkpoints by them"
    )


def since_step(record: Mapping[str, Any]) -> int:
    """Returns the step after which a run evaluates its current videos; 0 if they never changed."""
    return record[_FIELD].get("since_step", 0)


def _read_saved(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    if _FIELD in saved:
        return saved[_FIELD]
    options = run_metadata.upgrade_config(saved["config"]).get("eval", {})
    return options if options.get("every_steps") else {}
