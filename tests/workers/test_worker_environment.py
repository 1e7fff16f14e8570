import pytest
from hostile_workers import list_variables

from invnext_jax.workers.process_worker import ProcessWorker
from invnext_jax.workers.worker_environment import make_environment

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "a",
    "GOOGLE_APPLICATION_CREDENTIALS": "b",
    "https_proxy": "http://user:password@proxy",
    "INVNEXT_SECRET": "c",
    "HF_TOKEN": "d",
    "WANDB_API_KEY": "e",
    "SSH_AUTH_SOCK": "f",
}
PLAIN = {"PATH": "/bin", "LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "0", "MKL_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    ("protocols", "passed"),
    [
        ((), set()),
        (("https",), {"https_proxy"}),
        (("s3",), {"https_proxy", "AWS_SECRET_ACCESS_KEY"}),
        (("gs",), {"https_proxy", "GOOGLE_APPLICATION_CREDENTIALS"}),
    ],
)
def test_only_the_credentials_of_the_protocols_are_passed(protocols, passed):
    environment = make_environment(protocols, {**PLAIN, **SECRETS})
    assert environment.keys() & SECRETS.keys() == passed
    assert environment.items() >= PLAIN.items()


def test_further_variables_can_be_named():
    named = {"INVNEXT_WORKER_VARIABLES": "HF_TOKEN,ABSENT"}
    environment = make_environment((), {**PLAIN, **SECRETS, **named})
    assert environment.keys() & {*SECRETS, "ABSENT"} == {"HF_TOKEN"}


def test_a_worker_sees_no_secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    worker = ProcessWorker(list_variables)
    names = worker.call((), 20)
    worker.close()
    assert "PATH" in names and not SECRETS.keys() & set(names)
