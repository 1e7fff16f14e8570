import errno
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from invnext_jax import command_output, errors
from invnext_jax.errors import NonFiniteError, UserError

# ml_collections loads config files in a way that Python 3.15 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/configs/stage1.py:tiny"


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line as launch/main.py does."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder.", flag_values=values, required=True)
    flags.mark_flag_as_required("config", flag_values=values)
    monkeypatch.setattr(errors.flags, "FLAGS", values)

    def parse(*arguments):
        argv = ["main.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        return errors.parse_flags(argv), values

    return parse


def test_fields_are_set_from_the_command_line(parse):
    rest, values = parse(CONFIG, "--workdir=a", "--config.encoder.width=5")
    assert rest == ["main.py"]
    assert values.config.encoder.width == 5


def test_sources_are_set_from_the_command_line(parse):
    weights = "--config.data.weights=(('ssv2', 0.5), ('k400', 2))"
    _, values = parse(CONFIG, "--workdir=a", weights, "--config.data.by_source.ssv2.flip=True")
    assert values.config.data.weights == (("ssv2", 0.5), ("k400", 2))
    assert values.config.data.by_source.ssv2.flip is True
    assert values.config.data.by_source.world.flip is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            [CONFIG, "--workdir=a", "--config.encoder.widht=3"],
            "unknown option --config.encoder.widht: the nearest one is --config.encoder.width",
        ),
        (
            [CONFIG, "--workdir=a", "--config.encoder.width.x=3"],
            "unknown option --config.encoder.width.x: the nearest one is --config.encoder.width",
        ),
        (
            [CONFIG, "--workdir=a", "--config.encoder.width=wide"],
            "--config.encoder.width=wide is invalid: set it to an integer",
        ),
        (
            [CONFIG, "--workdir=a", "--config.batch_size=8.5"],
            "--config.batch_size=8.5 is invalid: set it to an integer",
        ),
        (
            [CONFIG, "--workdir=a", "--config.data.flip=yes"],
            "--config.data.flip=yes is invalid: set it to True or False",
        ),
        (
            [CONFIG, "--workdir=a", "--config.init_gain=big"],
            "--config.init_gain=big is invalid: set it to a number",
        ),
        (
            [CONFIG.replace("tiny", "huge"), "--workdir=a"],
            "unknown variant 'huge': choose one of tiny, base, large, 1b",
        ),
        (["--config=nowhere.py", "--workdir=a"], "there is no config file 'nowhere.py'"),
        ([CONFIG], "--workdir is missing"),
        (["--workdir=a"], "--config is missing"),
        ([CONFIG, "--wrokdir=a"], "Unknown command line flag 'wrokdir'. Did you mean: workdir?"),
    ],
)
def test_command_line_errors_are_one_sentence(parse, arguments, sentence):
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_most_similar_flag_is_suggested_first():
    text = "Unknown command line flag 'sorce'. Did you mean: perceptual, source, workers ?"
    assert errors._first_cause(text).endswith("Did you mean: source, workers, perceptual?")


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (NonFiniteError, 3)])
def test_an_error_for_the_user_is_a_line_and_an_exit_code(error, code, capsys):
    with pytest.raises(SystemExit) as caught, errors.exit_on_user_error():
        raise error("change this")
    assert caught.value.code == code
    assert capsys.readouterr().err == "error: change this\n"


def test_new_lines_of_names_do_not_begin_a_line(capsys):
    name = "a\nWrote b\u2028Wrote c\r\nINFO: all is well"
    with pytest.raises(SystemExit), errors.exit_on_user_error():
        raise UserError(f"{name} is bad:", "row 1", f"row {name}")
    escaped = r"a\nWrote b\u2028Wrote c\r\nINFO: all is well"
    expected = f"error: {escaped} is bad:\n  row 1\n  row {escaped}\n"
    assert capsys.readouterr().err == expected
    error = pickle.loads(pickle.dumps(UserError("a:", "row")))
    assert str(error) == "a:\n  row"


def test_new_lines_of_names_do_not_begin_an_entry_of_the_log():
    record = logging.LogRecord("absl", logging.WARNING, "a.py", 1, "bad %s", ("a\nI b",), None)
    assert command_output._SanitizedFormatter().format(record).endswith("bad a\n  I b")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG])
def test_a_file_that_must_not_be_used_is_a_line_and_an_exit_code(number, capsys):
    with pytest.raises(SystemExit) as caught, errors.exit_on_user_error():
        raise OSError(number, "reason", "a\nb")
    assert caught.value.code == 2
    expected = "error: a\\nb cannot be read or written (reason): check the path\n"
    assert capsys.readouterr().err == expected


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_a_line_and_an_exit_code(capsys):
    with pytest.raises(SystemExit) as caught, errors.exit_on_user_error():
        with open("/dev/full", "w") as file:
            file.write("a")
    assert caught.value.code == 2
    sentence = "cannot be read or written (No space left on device): free space, then repeat"
    assert capsys.readouterr().err == f"error: a file {sentence} the command\n"


def test_long_errors_keep_the_end_that_says_what_to_change(capsys):
    with pytest.raises(SystemExit), errors.exit_on_user_error():
        raise errors.UserError(f"{'x' * 10**6} is not a path: set another one")
    text = capsys.readouterr().err
    assert len(text) < 21_000 and text.endswith("is not a path: set another one\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), errors.exit_on_user_error():
        _ = 1 / 0


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--config.optimizer.betaz=1", "error: unknown option --config.optimizer.betaz: "),
        ("--config.data.manifest=nowhere.csv", "error: manifest nowhere.csv does not exist"),
        ("--config.epochs=50", "error: config.epochs=50.0 is not used, because config.total_steps"),
        ("surplus", "error: unexpected argument 'surplus'"),
    ],
)
def test_launch_main_exits_with_code_2_and_no_traceback(argument, sentence, tmp_path):
    command = [sys.executable, "launch/main.py", CONFIG, f"--workdir={tmp_path / 'run'}", argument]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


SPEAK = r"""
import subprocess
import sys
from absl import logging
from invnext_jax import errors

def main(argv):
    print("label \x1b]0;owned\x07 https://me:password@host/a")
    logging.warning("dropped %s", "\x1b[31m?https://h/a?sig=abc")
    if argv[1] == "user":
        raise errors.UserError("bad \x1b[2J https://h/a?token=abc")
    raise KeyError("https://me:password@host\x1b[2J")

errors.run_command(main, arguments=None)
"""


@pytest.mark.parametrize("kind", ["user", "bug"])
def test_no_escape_or_secret_reaches_the_screen(kind):
    command = [sys.executable, "-c", SPEAK, kind]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    output = ended.stdout + ended.stderr
    assert ended.returncode == (2 if kind == "user" else 1)
    assert not any(secret in output for secret in ("\x1b", "\x07", "password", "abc"))
    assert r"label \x1b]0;owned\x07 https://REDACTED@host/a" in ended.stdout
    assert r"dropped \x1b[31m?https://h/a?sig=REDACTED" in ended.stderr
    if kind == "user":
        assert "error: bad \\x1b[2J https://h/a?token=REDACTED\n" in ended.stderr
    else:
        assert "Traceback" in ended.stderr and "https://REDACTED@host" in ended.stderr


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run"])
def test_url_in_place_of_a_local_path_is_one_sentence(path):
    with pytest.raises(UserError, match=f"^--workdir={path} must be a local path"):
        errors.check_local_path("--workdir", path)


@pytest.mark.parametrize("path", ["gs/bucket", "/a:b//c", "runs://x"[4:], Path("a/b")])
def test_local_path_is_accepted(path):
    errors.check_local_path("--workdir", path)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("report.py", ["run", "--out=gs://bucket/page.html"]),
        ("make_world.py", ["--out=s3://bucket/world", "--videos=1"]),
    ],
)
def test_scripts_refuse_urls_and_create_no_folder(tmp_path, script, arguments):
    ended = subprocess.run(
        [sys.executable, str(ROOT / "launch" / script), *arguments],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120},
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --out=")
    assert "://bucket/" in ended.stderr and "must be a local path" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        (
            "--config.variant=base",
            "choose the variant in the config path, --config=",
        ),
        ("--config.stage=stage2", "choose the stage in the config path, --config="),
        ("--config.target.kind=image", "--config.target.kind is an option of "),
        ("--config.data.by_source.mine.flip=False", "config.data.by_source has no source 'mine'"),
        ("--config.mask.blocks[0]=(1,2)", "0 is not a valid index for <class 'tuple'>"),
    ],
)
def test_option_that_changes_nothing_says_where_the_choice_is_made(parse, argument, sentence):
    with pytest.raises(UserError) as caught:
        parse(CONFIG, "--workdir=a", argument)
    text = str(caught.value)
    assert sentence in text and "\n" not in text
    ends = {"variant": "configs/stage1.py:base", "stage": "configs/stage2.py:tiny"}
    ends |= {"target": "configs/stage2.py only: remove it, or choose that file"}
    assert text.endswith(ends.get(argument.split(".")[1].partition("=")[0], ""))


def test_overrides_are_the_fields_of_the_command_line(parse):
    parse(CONFIG, "--workdir=a", "--config.seed=1", "--config.data.by_source.ssv2.flip=True")
    assert errors.list_overrides() == ("seed", "data.by_source.ssv2.flip")
