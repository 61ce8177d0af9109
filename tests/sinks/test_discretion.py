"""What a text tells of the environment, and what is left of it."""

import pytest

from lightning_symmetry.sinks.discretion import discreet

HOME = "/home/alice"
ENVIRONMENT = {
    "HOME": HOME,
    "WANDB_API_KEY": "0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "wJalr/UtnFEMI+bPx",
    "hf_token": "hf_12345678",
    "HF_TOKEN_OLD": "hf_12345678_and_more",
    "DB_PASSWORD": "correct-horse\n",
    "TOKENIZERS_PARALLELISM": "false",
    "LANG": "en_GB.UTF-8",
}


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ("key 0123456789abcdef is refused", "key *** is refused"),
        ("hf_12345678_and_more, hf_12345678", "***, ***"),  # the longer one as a whole
        ("'correct-horse' is wrong", "'***' is wrong"),
        ("GET /?signed=wJalr%2FUtnFEMI%2BbPx", "GET /?signed=***"),  # as a URL writes it
        ("false in en_GB.UTF-8", "false in en_GB.UTF-8"),  # too short, or no secret
        ("https://alice:pass@host/a?b=1#c", "https://***@host/a?b=1#c"),
        ("git clone https://ghp_x@host/a.git", "git clone https://***@host/a.git"),
        ("s3://bucket/?v=2&access_token=abc&n=1", "s3://bucket/?v=2&access_token=***&n=1"),
        ("'https://host/?Api-Key=abc' failed", "'https://host/?Api-Key=***' failed"),
        ("https://host:443/a/b, alice@host", "https://host:443/a/b, alice@host"),
        (f"no {HOME}/data.pt in '{HOME}'", "no ~/data.pt in '~'"),
        (f"{HOME}-old/a, /mnt{HOME}/b and {HOME}2", f"{HOME}-old/a, /mnt{HOME}/b and {HOME}2"),  # others
        ({"a": ["hf_12345678", 1, None], "b": ({"c": HOME},)}, {"a": ["***", 1, None], "b": [{"c": "~"}]}),
    ],
)
def test_what_is_left_of_a_text(told, left):
    assert discreet(told, ENVIRONMENT) == left
    assert discreet(left, ENVIRONMENT) == left


@pytest.mark.parametrize("home", ["/", ""])
def test_a_home_that_is_no_place_of_its_own_is_no_secret(home, monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert discreet("/data/a.pt", {"HOME": home}) == "/data/a.pt"
