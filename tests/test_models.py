"""Saved models come back bit for bit; what is damaged, altered or unsound is refused in one line."""

import dataclasses
import json
import os
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from testbed.runs.models import digest_of, load, load_or_make, make_missing, notes, save

NAMES = ("injury", "cipher_vault")  # a classifier and a generator


def numbers(parameter):
    return np.asarray(parameter[...], np.float64)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_give_the_same_bits(name, small, lively, tmp_path):
    model, path = lively(small(name), layers=2), tmp_path / "a.b"
    save(path, model, seed=3)
    loaded = load(path)
    assert loaded.config == model.config
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # Whoever has json and safetensors, and not this project, can read it too.
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.b.json", "a.b.safetensors"]
    document = json.loads((tmp_path / "a.b.json").read_text())
    assert re.fullmatch("[0-9a-f]{16}", document.pop("config_digest"))
    assert document == {"config": dataclasses.asdict(model.config), "notes": {"seed": 3}, "digest": digest_of(model)}
    tensors = safetensors.numpy.load_file(tmp_path / "a.b.safetensors")
    (kernel,) = (tensor for tensor_name, tensor in tensors.items() if tensor_name.startswith("blocks.1.up.kernel"))
    np.testing.assert_array_equal(kernel, numbers(model.blocks[1].up.kernel))
    assert sum(tensor.size for tensor in tensors.values()) == sum(leaf.size for leaf in jax.tree.leaves(model))


def _without_tensor(path):
    tensors = safetensors.numpy.load_file(path)
    tensors.popitem()
    safetensors.numpy.save_file(tensors, path)


def _other_width(path):
    path.write_text(path.read_text().replace('"width": 8', '"width": 16'))


DAMAGE = [
    ("json", lambda file: file.unlink(), "is not a saved model"),
    ("safetensors", lambda file: file.unlink(), "is not a saved model"),
    ("json", lambda file: file.write_text(file.read_text()[:40]), "is not a saved model"),
    ("json", lambda file: file.write_text("{}"), "is not a saved model"),
    ("json", lambda file: file.write_text('{"config": {"depth": 3}}'), "is not a saved model"),
    ("safetensors", lambda file: file.write_bytes(file.read_bytes()[:-8]), "is not a saved model"),
    ("safetensors", lambda file: file.write_bytes(b""), "is not a saved model"),
    ("safetensors", _without_tensor, "does not fit its config"),
    ("json", _other_width, "does not fit its config"),
]


@pytest.mark.parametrize(("ending", "damage", "complaint"), DAMAGE)
def test_damaged_files_are_refused(ending, damage, complaint, small, lively, tmp_path):
    save(tmp_path / "m", lively(small("injury"), layers=1))
    damage(tmp_path / f"m.{ending}")
    with pytest.raises(ValueError, match=f"m.*{complaint}"):
        load(tmp_path / "m")


def _one_flipped_bit(file):
    content = bytearray(file.read_bytes())
    content[-2] ^= 1  # of the last number's fraction: it stays finite
    file.write_bytes(content)


def _as_type(dtype):
    def change(file):
        tensors = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file({name: tensor.astype(dtype) for name, tensor in tensors.items()}, file)

    return change


def _with_nan(file):
    tensors = safetensors.numpy.load_file(file)
    [name] = [name for name in tensors if name.startswith("norm.bias")]
    tensors[name][2] = np.nan
    safetensors.numpy.save_file(tensors, file)


def _two_tensors_swapped(file):
    tensors = safetensors.numpy.load_file(file)
    query, key = (name for part in ("query", "key") for name in tensors if name.startswith(f"blocks.0.{part}.kernel"))
    safetensors.numpy.save_file(tensors | {query: tensors[key], key: tensors[query]}, file)


def _other_heads(file):
    file.write_text(file.read_text().replace('"heads": 2', '"heads": 4'))


def _without_digests(file):
    document = json.loads(file.read_text())
    del document["digest"], document["config_digest"]
    file.write_text(json.dumps(document))


ANEW = r"delete m.json and .safetensors, and make the model again"
ALTERED = [
    ("safetensors", _one_flipped_bit, f"was altered since it was saved; {ANEW}"),
    ("safetensors", _two_tensors_swapped, f"was altered since it was saved; {ANEW}"),
    ("safetensors", _with_nan, f"was altered since it was saved; {ANEW}"),
    ("json", _other_heads, f"the config was altered since it was saved; {ANEW}"),
    ("safetensors", _as_type("float16"), "holds float16; save the model again in float32"),
    ("safetensors", _as_type("int32"), "holds int32; save the model again in float32"),
]


@pytest.mark.parametrize(("ending", "change", "complaint"), ALTERED)
def test_altered_models_are_refused_in_one_line(ending, change, complaint, small, lively, tmp_path):
    save(tmp_path / "m", lively(small("injury"), layers=1))
    change(tmp_path / f"m.{ending}")
    with pytest.raises(ValueError, match=f"^{tmp_path}/m.{ending}:? {complaint}$"):
        load(tmp_path / "m")


def test_a_model_from_before_there_were_digests_is_loaded_if_it_is_sound(small, lively, tmp_path):
    model = lively(small("injury"), layers=1)
    save(tmp_path / "m", model)
    _without_digests(tmp_path / "m.json")
    assert digest_of(load(tmp_path / "m")) == digest_of(model)
    _with_nan(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=f"holds 1 numbers that are not finite; {ANEW}"):
        load(tmp_path / "m")
    save(tmp_path / "m", model)
    _without_digests(tmp_path / "m.json")
    _as_type("float16")(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="holds float16; save the model again in float32"):
        load(tmp_path / "m")


def test_the_digest_of_a_model_is_of_its_tensors(small, lively):
    model = lively(small("injury"), layers=1)
    assert digest_of(model) == digest_of(jax.tree.map(lambda leaf: leaf + 0, model))
    others = [lively(small("injury"), 1, layers=1), lively(small("injury"), layers=2)]
    others.append(jax.tree.map(lambda leaf: leaf.astype(jnp.float16), model))
    for index in range(len(jax.tree.leaves(model))):
        leaves, structure = jax.tree.flatten(model)
        leaves[index] = leaves[index].at[(0,) * leaves[index].ndim].add(1e-3)
        others.append(jax.tree.unflatten(structure, leaves))
    assert len({digest_of(one) for one in [model, *others]}) == 1 + len(others)


@pytest.mark.parametrize(
    "sizes", [{"layers": 10**6}, {"layers": 257}, {"width": 4 * 10**9}, {"vocab": 10**30}, {"prompt_length": 2**62}]
)
def test_absurd_sizes_are_refused_before_anything_is_built(sizes, small, lively, tmp_path, monkeypatch):
    save(tmp_path / "m", lively(small("injury"), layers=1))
    document = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps(document | {"config": document["config"] | sizes}))
    monkeypatch.setattr("testbed.runs.models.build", lambda *_: pytest.fail("it is built"))
    with pytest.raises(ValueError, match=f"{tmp_path}/m is not a saved model .* must be at most"):
        load(tmp_path / "m")


def test_what_is_no_regular_file_does_not_hang(small, lively, tmp_path):
    save(tmp_path / "m", lively(small("injury"), layers=1))
    for ending in ("safetensors", "json"):
        (tmp_path / f"m.{ending}").unlink()
        os.mkfifo(tmp_path / f"m.{ending}")
        with pytest.raises(ValueError, match=r"is not a saved model .*not a regular file"):
            load(tmp_path / "m")
    with pytest.raises(ValueError, match="is not a saved model"):
        notes(tmp_path / "m")


def test_a_model_that_another_saved_meanwhile_stays_as_it_is(small, lively, tmp_path):
    a, b = ((lively(small("injury"), seed=seed, layers=1), {"by": seed}) for seed in (1, 2))

    def make():
        save(tmp_path / "b", a[0], by=1)
        return [b, b]

    make_missing([tmp_path / "a", tmp_path / "b"], make)
    assert notes(tmp_path / "b") == {"by": 1} and notes(tmp_path / "a") == {"by": 2}


def test_load_or_make_makes_once(small, lively, tmp_path):
    """Also when several threads want the same model at once."""
    made, found = [], []

    def make():
        made.append(1)
        return lively(small("injury"), seed=len(made), layers=1), {"why": "a test"}

    def want():
        found.append(load_or_make(tmp_path / "m", make))

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want()
    assert len(made) == 1
    assert len(found) == 4
    for model, told in found:
        np.testing.assert_array_equal(model.position[...], lively(small("injury"), seed=1, layers=1).position[...])
        assert told == {"why": "a test"}
