"""What a file says of a key: verified, not verified or unusable; what was read; and what an adversary hands in."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bench
from bench import verify as command
from bench.errors import UserError
from bench.owner import evidence, keyfile
from tests.bench.owner.conftest import net, permuted, trained


@pytest.fixture
def say(owned, capsys, monkeypatch):
    """The command, in the folder of the mark: exit status and what it printed."""
    monkeypatch.chdir(owned)

    def run(*words: str) -> tuple[int, str, str]:
        key = [] if "--key" in words else ["--key", "key.safetensors"]
        status = command.main([*words, *key])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_marked_plain_and_unusable_are_three_statuses(say, owned):
    status, out, err = say("marked.pth")
    assert (status, err) == (0, "")
    assert out.startswith("VERIFIED: key.safetensors in marked.pth\n  bits    48 of 48, BER 0.0000")
    assert "read: last.0.weight (16, 16, 3, 3) float32" in out
    assert "The mark is present: of the 48 bits of the key, 48 match" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    status, out, _ = say("plain.pth")
    assert status == 3
    assert out.startswith("NOT VERIFIED")
    assert "No mark is established" in out
    status, out, err = say("key.safetensors")
    assert (status, out) == (2, "")
    assert err.startswith("error: key.safetensors: holds none of the weights that the key names")
    assert say("nothing.pth")[0] == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}},
        lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if k.startswith("last.0")},
        lambda s: {**s, "last.0.weight": s["last.0.weight"].to(memory_format=torch.channels_last)},
    ],
)
def test_a_copy_verifies_however_it_is_kept(say, owned, change):
    torch.save(change(torch.load(owned / "marked.pth", weights_only=True)), owned / "kept.pth")
    assert say("kept.pth")[0] == 0


def test_all_bits_inverted_are_the_mark_and_are_said_to_be(say, owned):
    state = torch.load(owned / "marked.pth", weights_only=True)
    torch.save({**state, "last.0.weight": -state["last.0.weight"]}, owned / "inverted.pth")
    status, out, _ = say("inverted.pth")
    assert status == 0
    assert "48 of 48, BER 1.0000, read by position, inverted" in out
    assert "48 are inverted in what method uchida reads" in " ".join(out.split())


def test_what_is_no_number_missing_or_of_another_shape_is_said(say, owned):
    state = torch.load(owned / "marked.pth", weights_only=True)
    weight = state["last.0.weight"].clone()
    weight[:, 0] = math.nan
    torch.save({**state, "last.0.weight": weight}, owned / "nan.pth")
    status, out, _ = say("nan.pth")
    assert status == 3
    assert "last.0.weight: 144 of 2,304 values are no numbers" in " ".join(out.split())
    torch.save({**state, "last.0.weight": weight[:8]}, owned / "cut.pth")
    status, _, err = say("cut.pth")
    assert status == 2
    assert "is (8, 16, 3, 3) there, not (16, 16, 3, 3): not read" in err


def test_permuted_channels_are_put_back_by_the_committed_copy_alone(say, owned):
    torch.save(permuted(torch.load(owned / "marked.pth", weights_only=True)), owned / "permuted.pth")
    status, out, _ = say("permuted.pth")
    assert status == 3
    status, out, _ = say("permuted.pth", "--reference", "marked.pth")
    assert status == 0
    assert "read aligned" in out
    assert "after its channels were put in the order of the owner's copy" in " ".join(out.split())
    # A stranger stays one, and a reference that was chosen afterwards is none.
    torch.save(permuted(net(5).state_dict()), owned / "stranger.pth")
    assert say("stranger.pth", "--reference", "marked.pth")[0] == 3
    status, _, err = say("permuted.pth", "--reference", "plain.pth")
    assert status == 2
    assert "not the copy that this key was saved with" in err


def test_the_same_copy_in_another_format_is_the_reference(owned):
    state = torch.load(owned / "marked.pth", weights_only=True)
    save_file({f"module.{k}": v for k, v in state.items()}, owned / "other.safetensors")
    found = bench.verify(permuted(state, 3), owned / "key.safetensors", reference=owned / "other.safetensors")
    assert found
    assert found.how.startswith("aligned")


def test_json_says_the_same(say):
    status, out, _ = say("marked.pth", "--json")
    told = json.loads(out)
    assert (status, told["status"], told["verified"]) == (0, 0, True)
    (claim,) = told["claims"]
    assert (claim["ber"], claim["n_bits"], claim["detected"], claim["committed"]) == (0.0, 48, True, None)
    status, out, _ = say("nothing.pth", "--json")
    assert json.loads(out) == {"status": 2, "verified": None, "error": "nothing.pth: no such file"}


def test_alpha_is_a_probability_and_decides(say):
    assert say("marked.pth", "--alpha", "1e-15")[0] == 3
    for odd in ("0", "1", "-1", "nan"):
        assert say("marked.pth", "--alpha", odd)[0] == 2


def test_a_second_file_is_no_word_and_is_not_passed_over(say):
    assert "plain.pth: one file at a time" in say("marked.pth", "plain.pth")[2]
    assert "is read from weights, which takes no network" in say("marked.pth", "model=resnet18")[2]
    assert say("marked.pth", "plain.pth")[0] == 2


def test_names_do_not_move_the_cursor(say, owned):
    state = torch.load(owned / "marked.pth", weights_only=True)
    torch.save({f"\x1b[2J\rVERIFIED.{k}": v for k, v in state.items()}, owned / "odd.pth")
    status, out, err = say("odd.pth")
    assert status == 0
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    assert "?[2J?VERIFIED. is left out of its tensors' names" in " ".join(out.split())


def test_help_fits_a_screen():
    text = command.parser().format_help()
    assert 24 <= len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 80


def test_p_is_said_in_digits_of_any_size():
    assert [evidence.number(x) for x in (0.0, -0.3, -9.0, -76.8, -400.5)] == [
        "1",
        "0.5",
        "1.0e-9",
        "1.6e-77",
        "3.2e-401",
    ]


# Keys that somebody forged


def forged(owned, tmp_path, tensors=lambda t: t, about=lambda a: a):
    with safe_open(owned / "key.safetensors", "pt") as file:
        metadata = dict(file.metadata())
    held = load_file(owned / "key.safetensors")
    path = tmp_path / "forged.safetensors"
    save_file(tensors(held) or held, path, {k: v for k, v in (about(metadata) or metadata).items() if v is not None})
    return path


@pytest.mark.parametrize(
    "about",
    [
        {"method": "os"},
        {"method": "../../etc/passwd"},
        {"method": None},
        {"options": None},
        {"options": "{"},
        {"options": '{"_target_": "os.system", "command": "touch ran"}'},
        {"options": '{"n_bits": 1000000000}'},
        {"options": '{"n_bits": 48, "lambda_": "x"}'},
        {"where": "3"},
        {"where": '["last.0.weight", "fc.weight"]'},
        {"shapes": "{}"},
        {"shapes": '{"last.0.weight": [1000000, 1000000, 1000000]}'},
        {"shapes": '{"last.0.weight": [-1, 16, 3, 3]}'},
        {"shapes": '{"last.0.weight": "16"}'},
        {"version": "99"},
        {"version": "x"},
        {"tied": "[1]"},
        {"carriers": "7"},
        {"structure": "[" * 10000},
    ],
)
def test_metadata_that_cannot_be_is_one_line(owned, tmp_path, about):
    path = forged(owned, tmp_path, about=lambda old: {**old, **about})
    with pytest.raises(UserError) as told:
        bench.verify(owned / "marked.pth", path)
    assert told.value.code == 2
    assert "\n" not in str(told.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "tensors",
    [
        lambda t: {k: v for k, v in t.items() if k != "message"},
        lambda t: t | {"message": torch.zeros(0, dtype=torch.uint8)},
        lambda t: t | {"message": t["message"] + 7},
        lambda t: t | {"message": t["message"][:20]},
        lambda t: t | {"projection": t["projection"][:, :5].contiguous()},
        lambda t: t | {"projection": torch.zeros(3)},
        lambda t: {k: v for k, v in t.items() if k != "projection"},
    ],
)
def test_secrets_that_do_not_fit_are_unusable(owned, tmp_path, tensors):
    with pytest.raises(UserError) as told:
        bench.verify(owned / "marked.pth", forged(owned, tmp_path, tensors))
    assert told.value.code == 2


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_secrets_that_read_nothing_verify_nothing(owned, tmp_path, value):
    path = forged(owned, tmp_path, lambda t: t | {"projection": torch.full_like(t["projection"], value)})
    found = bench.verify(owned / "marked.pth", path)
    assert not found
    assert found.ber == 0.5


def test_a_structure_that_lies_is_refused_and_moves_nothing(owned, tmp_path):
    for name in ("structure/channels.root", "structure/scale.ids"):
        path = forged(owned, tmp_path, lambda t, name=name: t | {name: t[name] * 1000})
        with pytest.raises(UserError, match="cannot be put in the reference's order") as told:
            bench.verify(owned / "plain.pth", path, reference=owned / "marked.pth")
        assert told.value.code == 2


def test_a_key_whose_positions_are_elsewhere_is_unusable(tmp_path):
    model = net()
    mark = bench.Watermark("tondi", model, seed=0, n_bits=40, spread=8)
    mark.key.secret["positions"][0, 0] = 10**12
    mark.save(tmp_path / "key.safetensors")
    with pytest.raises(UserError, match="the key does not fit"):
        bench.verify(model.state_dict(), tmp_path / "key.safetensors")


def test_a_message_that_is_not_bound_fails_the_check(tmp_path):
    model = net()
    mark = bench.Watermark("uchida", model, seed=0, n_bits=48, binding="hash")
    trained(model, mark)
    good = mark.verify(model)
    assert good
    assert list(good.checks.values()) == [True]
    # Another message with the same projection reads as chance has it; the projection chosen afterwards fails.
    with torch.no_grad():
        read = mark.method.logits(model, mark.key) > 0
    lie = torch.randn(48, 144)
    signs = torch.where((lie @ model.last[0].weight.mean(0).flatten() > 0) == read, 1.0, -1.0)
    mark.key.secret["projection"] = lie * signs[:, None]
    found = mark.verify(model)
    assert found.log10_p < -9
    assert not found
    assert list(found.checks.values()) == [False]
    assert "the method's own check fails" in found.sentence


def test_an_unbound_key_says_that_only_its_date_counts(say):
    status, out, _ = say("marked.pth")
    assert status == 0
    assert "nothing in this key binds it" in " ".join(out.split())


def test_a_key_of_the_harness_needs_what_lies_beside_it(marked, tmp_path):
    x, *_ = marked("uchida")
    from bench import stages

    folder = stages.mark(x, warn=False).path
    found = bench.verify(folder / "model.safetensors", folder / "key.safetensors")
    assert found.ber == 0
    (tmp_path / "alone.safetensors").write_bytes((folder / "key.safetensors").read_bytes())
    with pytest.raises(UserError, match="with which options"):
        keyfile.read(tmp_path / "alone.safetensors")


def test_random_keys_read_coin_tosses(owned):
    errors = []
    for seed in range(40):
        mark = bench.Watermark("uchida", net(1), seed=seed, n_bits=48)
        errors.append(mark.verify(owned / "marked.pth").ber)
    assert abs(np.mean(errors) - 0.5) < 5 * 0.5 / math.sqrt(40 * 48)
