"""Stored networks: the same bits again, whole or not there at all, and nothing of a file is believed or executed."""

import contextlib
import copy
import errno
import hashlib
import json
import os
import pickle
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ke_metric import extract_slim, load_network, plan_split, save_network
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks import bundle as tensors_module
from ke_metric.networks.bundle_config import Architecture, NetworkCard, read_description
from ke_metric.networks.dense import build_network
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import ARCHITECTURE_FIELDS, without_values_before

RECIPE = Recipe.model_validate(
    {
        "name": "x",
        "data": {"image_size": 32},
        "network": {"backbone": "timm/test_resnet", "embedding_size": 24},
        "evaluation": {"resize": 40},
    }
)
TRAVELLERS = torchvision.models.list_models(module=torchvision.models) + [
    f"timm/{name}" for name in random.Random(0).sample(timm.list_models(), 60)
]
CONFIG, WEIGHTS = "config.json", "model.safetensors"
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def outputs(network, images=IMAGES):
    with torch.no_grad():
        return network.eval()(images)


def lived_in(network):
    """Give a network values that no initialisation has: norm statistics, scales, biases."""
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    return network.eval()


def cut(network, rate=0.5, images=IMAGES):
    return extract_slim(network, plan_split(network, images[:1], rate=rate))


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refused(exit_code, match):
    return pytest.raises(KeMetricError, match=match, check=lambda error: error.exit_code == exit_code)


@pytest.fixture(scope="module")
def dense():
    with default_streams(0, 1, "network"):
        return lived_in(build_network(RECIPE.network, 32))


@pytest.fixture(scope="module")
def slim(dense):
    return cut(dense)


@pytest.fixture(scope="module")
def stored(slim, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "slim"
    save_network(slim, folder, architecture=Architecture.of_recipe(RECIPE), card=NetworkCard.of_recipe(RECIPE))
    return folder


@pytest.fixture
def damaged(stored, tmp_path):
    """A copy to be damaged."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes((stored / name).read_bytes())
    return folder


def rewrite(folder, edit, *, weights=None):
    """Edit config.json, and replace the weights, with checksums that are right: what a forger would do."""
    document = json.loads((folder / CONFIG).read_text())
    del document["sha256"]
    if weights is not None:
        (folder / WEIGHTS).write_bytes(weights)
        document["weights"] = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    edit(document)
    checksum = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(document | {"sha256": checksum}))


# What comes back.


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["embedding", "embedding cut twice", "dense", "squeezenet1_1", "timm", "bfloat16"])
def test_outputs_are_the_same_to_the_last_bit(name, memory_format, dense, tmp_path):
    architecture, images = Architecture.of_recipe(RECIPE), IMAGES
    if name == "squeezenet1_1":
        architecture = Architecture.torchvision(name, num_classes=7)
        network = cut(lived_in(torchvision.models.squeezenet1_1(num_classes=7)))
    elif name == "timm":
        architecture = Architecture.timm("test_convnext", num_classes=5)
        network = lived_in(timm.create_model("test_convnext", num_classes=5))
    else:
        network = dense if name == "dense" else cut(dense)
        network = cut(network, 0.7) if name == "embedding cut twice" else copy.deepcopy(network)
    if name == "bfloat16":
        network, images = network.bfloat16(), images.bfloat16()
    network = network.to(memory_format=memory_format)
    save_network(network, tmp_path / "n", architecture=architecture)
    loaded = load_network(tmp_path / "n")
    assert outputs(loaded, images).equal(outputs(network, images))
    for ours, theirs in zip(network.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
    assert not any(module.training for module in loaded.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAVELLERS)
def test_every_library_network_travels(name, tmp_path):
    """Dense and, where it can be cut, slim; the large ones are left out."""
    library, _, model = name.rpartition("/")
    architecture = (Architecture.timm if library else Architecture.torchvision)(model)
    if sum(parameter.numel() for parameter in architecture.build().parameters()) > 40e6:
        pytest.skip("large")
    make = timm.create_model if library else torchvision.models.get_model
    network = lived_in(make(model, **architecture.arguments))
    size = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    travellers = [network]
    with contextlib.suppress(KeMetricError):
        travellers.append(cut(network, images=images))
    for traveller in travellers:
        expected = outputs(traveller, images)
        save_network(traveller, tmp_path / "n", architecture=architecture, overwrite=True)
        assert outputs(load_network(tmp_path / "n"), images).equal(expected)


def test_loading_and_saving_draw_nothing_and_change_nothing(slim, tmp_path):
    slim.train()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002 -- the default
    save_network(slim, tmp_path / "n", architecture=Architecture.of_recipe(RECIPE))
    load_network(tmp_path / "n")
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002 -- the default
    assert before[0].equal(after[0])
    assert before[1:] == after[1:]
    assert slim.training


def test_frozen_parameters_stay_frozen(slim, tmp_path):
    network = copy.deepcopy(slim)
    network.head.weight.requires_grad_(False)
    save_network(network, tmp_path / "n", architecture=Architecture.of_recipe(RECIPE))
    loaded = load_network(tmp_path / "n")
    frozen = [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]
    assert frozen == ["head.weight"]


@pytest.mark.skipif(not timm.is_model("test_vit_relpos"), reason="timm is older than its small network of the kind")
def test_buffers_that_no_state_dict_holds_are_stored_too(tmp_path):
    network = timm.create_model("test_vit_relpos", num_classes=5).eval()
    table = network.blocks[0].attn.rel_pos.relative_position_index
    assert not any(name.endswith("relative_position_index") for name in network.state_dict())
    table.copy_(table.flip(0))
    save_network(network, tmp_path / "n", architecture=Architecture.timm("test_vit_relpos", num_classes=5))
    loaded = load_network(tmp_path / "n")
    assert loaded.blocks[0].attn.rel_pos.relative_position_index.equal(table)


def test_a_loaded_network_is_split_trained_exported_and_stored_again(stored, slim, tmp_path):
    loaded = load_network(stored)
    exported = torch.export.export(loaded, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), outputs(slim), rtol=0, atol=1e-6)
    smaller = cut(loaded, 0.6)
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
    before = outputs(smaller)
    smaller.train()(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    optimizer.step()
    assert not outputs(smaller).equal(before)
    save_network(smaller, tmp_path / "n", architecture=Architecture.of_recipe(RECIPE))
    assert outputs(load_network(tmp_path / "n")).equal(outputs(smaller))


def test_config_says_what_a_user_has_to_know(stored, slim):
    document = json.loads((stored / CONFIG).read_text())
    assert document["architecture"] == {
        "builder": "ke_metric",
        # What networks had no choice of before is not written down where nothing is chosen.
        "network": without_values_before({"network": RECIPE.network.model_dump(mode="json")}, ARCHITECTURE_FIELDS)[
            "network"
        ],
        "image_size": 32,
    }
    assert document["split"] == {"kind": "kels", "rate": 0.5}
    assert document["normalization"] == {
        "background": "white",
        "exif_orientation": True,
        "views": 1,
        "store_size": 256,
        "store_shape": "keep",
        "resize": 40,
        "image_size": 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert (document["embedding_size"], document["class_names"]) == (24, None)
    assert document["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert document["tensors"]["head.weight"] == {"shape": [24, 48], "dtype": "float32"}
    assert document["settings"]["head"] == {"in_features": 48}
    assert document["weights"]["sha256"] == hashlib.sha256((stored / WEIGHTS).read_bytes()).hexdigest()
    described = read_description(stored)
    assert {name: facts.shape for name, facts in described.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in [*slim.named_parameters(), *slim.named_buffers()]
    }


def test_a_card_takes_a_split_plan_and_class_names(tmp_path):
    network = torchvision.models.squeezenet1_1(num_classes=2)
    plan = plan_split(network, IMAGES[:1], rate=0.8)
    save_network(
        extract_slim(network, plan),
        tmp_path / "n",
        architecture=Architecture.torchvision("squeezenet1_1", num_classes=2),
        card=NetworkCard(split=plan, class_names=("hen", "hoopoe")),
    )
    described = read_description(tmp_path / "n")
    assert (described.split.kind, described.split.rate) == ("kels", 0.8)
    assert described.class_names == ("hen", "hoopoe")
    assert described.embedding_size is None


# What is never left half done, or replaced by mistake.


def save(network, folder, **options):
    save_network(network, folder, architecture=Architecture.of_recipe(RECIPE), **options)


def test_a_stored_network_is_replaced_only_when_asked(slim, dense, stored, tmp_path):
    folder = tmp_path / "n"
    folder.mkdir()  # an empty folder is free
    save(slim, folder)
    with refused(ExitCode.USAGE, "stored network already.*overwrite"):
        save(dense, folder)
    assert outputs(load_network(folder)).equal(outputs(slim))
    save(dense, folder, overwrite=True)
    assert outputs(load_network(folder)).equal(outputs(dense))
    assert tree(tmp_path) == ["n", f"n/{CONFIG}", f"n/{WEIGHTS}"]


def foreign_file(place):
    place.write_text("mine")


def foreign_folder(place):
    place.mkdir()
    (place / "thesis.tex").write_text("mine")


def network_of_another_library(place):
    place.mkdir()
    (place / CONFIG).write_text('{"model_type": "vit"}')
    (place / WEIGHTS).write_bytes(b"theirs")


@pytest.mark.parametrize("make", [foreign_file, foreign_folder, network_of_another_library])
def test_what_is_no_stored_network_is_never_replaced(make, slim, tmp_path):
    make(tmp_path / "n")
    before = tree(tmp_path)
    with refused(ExitCode.USAGE, "never replaced"):
        save(slim, tmp_path / "n", overwrite=True)
    assert tree(tmp_path) == before


def test_notes_beside_a_stored_network_keep_it_from_being_replaced(slim, damaged):
    (damaged / "README.md").write_text("mine")
    with refused(ExitCode.USAGE, "nothing else"):
        save(slim, damaged, overwrite=True)


def test_the_current_folder_is_not_replaced(slim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(ExitCode.USAGE, "current folder"):
        save(slim, ".")


def test_a_link_to_another_disk_stays_one(slim, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "n").symlink_to(tmp_path / "elsewhere")
    save(slim, tmp_path / "n")
    assert (tmp_path / "n").is_symlink()
    assert outputs(load_network(tmp_path / "elsewhere")).equal(outputs(slim))


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["write_bytes", "write_text", "rename"])
def test_a_full_disk_leaves_what_was_there(function, slim, dense, tmp_path, monkeypatch):
    save(slim, tmp_path / "n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, function, full_disk)
        with refused(ExitCode.ENVIRONMENT, "n: cannot be written: the disk is full"):
            save(dense, tmp_path / "n", overwrite=True)
    assert tree(tmp_path) == ["n", f"n/{CONFIG}", f"n/{WEIGHTS}"]
    assert outputs(load_network(tmp_path / "n")).equal(outputs(slim))


def test_what_was_there_comes_back_when_the_new_one_cannot_take_its_place(slim, dense, tmp_path, monkeypatch):
    save(slim, tmp_path / "n")
    rename = Path.rename

    def only_away(path, target):
        return (
            full_disk()
            if (path / CONFIG).exists() and path.name.endswith("-n") and "former" not in path.name
            else (rename(path, target))
        )

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", only_away)
        with refused(ExitCode.ENVIRONMENT, "disk is full"):
            save(dense, tmp_path / "n", overwrite=True)
    assert tree(tmp_path) == ["n", f"n/{CONFIG}", f"n/{WEIGHTS}"]
    assert outputs(load_network(tmp_path / "n")).equal(outputs(slim))


def test_a_file_that_cannot_be_loaded_is_never_left(slim, tmp_path, monkeypatch):
    place = tensors_module._place
    monkeypatch.setattr(tensors_module, "_place", lambda *given: nn.Parameter(place(*given) * 2, requires_grad=False))
    with pytest.raises(AssertionError):
        save(slim, tmp_path / "n")
    assert tree(tmp_path) == []


def test_two_processes_that_store_at_once_leave_one_network(slim, tmp_path):
    refusals = []

    def store():
        try:
            save(slim, tmp_path / "n")
        except KeMetricError as error:
            refusals.append(error)

    threads = [threading.Thread(target=store) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == 3
    assert tree(tmp_path) == ["n", f"n/{CONFIG}", f"n/{WEIGHTS}"]
    assert outputs(load_network(tmp_path / "n")).equal(outputs(slim))


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        (Architecture.torchvision("resnet18"), "the network has a module 'backbone', its architecture has none"),
        (Architecture.torchvision("resnet81"), "did you mean 'resnet18'"),
    ],
)
def test_a_network_of_another_architecture_is_refused(architecture, words, slim, tmp_path):
    with refused(ExitCode.RECIPE, words):
        save_network(slim, tmp_path / "n", architecture=architecture)
    assert tree(tmp_path) == []


def test_a_network_with_code_of_its_own_is_refused(slim, tmp_path):
    network = copy.deepcopy(slim)
    network.head.register_forward_hook(lambda *_: None)
    with refused(ExitCode.RECIPE, "n: the network cannot be stored: head has forward hooks"):
        save(network, tmp_path / "n")


# What is not believed.


def test_missing_folder_and_files(damaged, tmp_path):
    with refused(ExitCode.DATA, "none: does not exist; .*a folder with config.json and model.safetensors"):
        load_network(tmp_path / "none")
    with refused(ExitCode.DATA, "config.json: is a file"):
        load_network(damaged / CONFIG)
    (damaged / WEIGHTS).rename(damaged / "weights")
    with refused(ExitCode.DATA, "model.safetensors: no such file"):
        load_network(damaged)
    (damaged / CONFIG).unlink()
    with refused(ExitCode.DATA, "config.json: no such file"):
        load_network(damaged)


@pytest.fixture(scope="module")
def fuzzed(stored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    return folder, {name: (stored / name).read_bytes() for name in (CONFIG, WEIGHTS)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data(), name=st.sampled_from([CONFIG, WEIGHTS]))
def test_any_damage_is_seen(data, name, fuzzed, slim):
    folder, contents = fuzzed
    content = bytearray(contents[name])
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="truncated"):
        del content[position:]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    for file, original in contents.items():
        (folder / file).write_bytes(content if file == name else original)
    try:
        loaded = load_network(folder)
    except KeMetricError as error:
        assert name in str(error)  # noqa: PT017 -- or nothing is wrong
    else:
        # Another white space, or the line break at the end.
        assert name == CONFIG
        assert json.loads(content) == json.loads(contents[CONFIG])
        assert outputs(loaded).equal(outputs(slim))


def truncate(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def flip(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def edit_a_setting(folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"in_features": 48', '"in_features": 96'))


def no_json(folder):
    (folder / CONFIG).write_text("{")


def deep_json(folder):
    (folder / CONFIG).write_text("[" * 10**6)


def large_json(folder):
    (folder / CONFIG).write_bytes(b" " * (16 * 2**20 + 1))


def no_text(folder):
    (folder / CONFIG).write_bytes(b"\xff\xfe")


def a_list(folder):
    (folder / CONFIG).write_text("[]")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "model.safetensors: has .* bytes, by config.json .*: truncated"),
        (flip, "model.safetensors: was changed or damaged"),
        (edit_a_setting, "config.json: was changed since it was written"),
        (no_json, "config.json: cannot be read: JSONDecodeError"),
        (deep_json, "config.json: cannot be read: RecursionError"),
        (large_json, "config.json: cannot be read: .*larger than"),
        (no_text, "config.json: cannot be read: UnicodeDecodeError"),
        (a_list, "config.json: holds list, not an object"),
    ],
)
def test_damage_in_words(damage, words, damaged):
    damage(damaged)
    with refused(ExitCode.DATA, words):
        load_network(damaged)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, crater):
        self.crater = crater

    def __reduce__(self):
        return Path.touch, (self.crater,)


@pytest.mark.parametrize("forged", [False, True], ids=["as it is", "with its checksum"])
@pytest.mark.parametrize("form", ["torch.save", "old torch.save", 2, 3, 4, 5])
def test_a_pickle_is_named_and_not_opened(form, forged, damaged, tmp_path):
    bomb = Bomb(tmp_path / "crater")
    if isinstance(form, int):
        (damaged / WEIGHTS).write_bytes(pickle.dumps(bomb, protocol=form))
    else:
        torch.save(bomb, damaged / WEIGHTS, _use_new_zipfile_serialization=form == "torch.save")
    if forged:
        rewrite(damaged, lambda document: None, weights=(damaged / WEIGHTS).read_bytes())
    with refused(ExitCode.DATA, "model.safetensors: no safetensors file but a pickle"):
        load_network(damaged)
    assert not bomb.crater.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.crater.exists()  # it would have gone off


def put(path, value):
    """Return an edit that puts a value into config.json."""
    *parents, last = path

    def edit(document):
        for parent in parents:
            document = document[parent]
        document[last] = value

    return edit


def drop(path):
    *parents, last = path

    def edit(document):
        for parent in parents:
            document = document[parent]
        del document[last]

    return edit


HEAD = ("tensors", "head.weight")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put(["format_version"], 2), "format_version = 2, this version of ke_metric reads 1"),
        (put(["format_version"], True), "format_version = true"),
        (drop(["format_version"]), "format_version = null"),
        (put(["pickle"], "x"), "unknown field 'pickle'"),
        (drop(["settings"]), "settings is missing"),
        (put(["architecture", "builder"], "os.system"), "architecture.builder = 'os.system', must be ke_metric, "),
        (
            put(["architecture"], {"name": "resnet18"}),
            "architecture.builder = null, must be ke_metric, ke_metric_classifier, torchvision or timm",
        ),
        (drop(["architecture", "builder"]), "architecture.builder = null"),
        (put(["architecture"], "torch"), "architecture = 'torch'"),
        (put(["architecture", "module"], "os"), "unknown field 'architecture.ke_metric.module'"),
        (put(["architecture", "network", "backbone"], "timm/test_resent"), "did you mean 'test_resnet'"),
        (put(["architecture", "network", "backbone"], "timm/test_vit"), "does not fit its own architecture"),
        (put(["architecture", "image_size"], 10**9), "architecture.ke_metric.image_size = 1000000000"),
        (put(["split", "rate"], 2.0), "split.rate = 2.0"),
        (put(["normalization", "mean"], [0.5]), "normalization.mean"),
        (put([*HEAD, "shape"], [24, 96]), r"'head.weight' is float32 \[24, 48\], by config.json float32 \[24, 96\]"),
        (put([*HEAD, "shape"], [10**12, 10**12]), r"by config.json float32 \[1000000000000, 1000000000000\]"),
        (put([*HEAD, "shape"], [-1]), "by config.json"),
        (put([*HEAD, "dtype"], "float16"), "by config.json float16"),
        (put([*HEAD, "channels_last"], True), "channels_last of a tensor with 2 dimensions"),
        (put([*HEAD, "grad"], "x"), "unknown field 'tensors.head.weight.grad'"),
        (
            put(["tensors", "head.extra"], {"shape": [1], "dtype": "float32"}),
            "'head.extra' is in config.json but not",
        ),
        (drop(HEAD), "'head.weight' is in model.safetensors but not in config.json"),
        (put(["settings", "head"], {"in_features": "48"}), "in_features = '48': must be of the type int"),
        (put(["settings", "head"], {"forward": "exit"}), "head has no attribute 'forward' that could be set"),
        (put(["settings", "os"], {"system": "exit"}), "no module 'os'"),
        (put(["weights", "bytes"], 10**15), "truncated"),
        (put(["weights", "sha256"], "0" * 64), "was changed or damaged"),
        (put(["weights", "sha256"], "x"), "weights.sha256 = 'x'"),
    ],
)
def test_a_forged_config_is_refused(edit, words, damaged):
    rewrite(damaged, edit)
    with refused(ExitCode.DATA, words):
        load_network(damaged)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("head.bias"), "'head.bias' is in config.json but not in model.safetensors"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "'extra' is in model.safetensors but not"),
    ],
)
def test_forged_weights_are_refused(change, words, damaged):
    tensors = safetensors.torch.load_file(damaged / WEIGHTS)
    change(tensors)
    rewrite(damaged, lambda document: None, weights=safetensors.torch.save(tensors))
    with refused(ExitCode.DATA, words):
        load_network(damaged)


@pytest.mark.parametrize("known", [True, False], ids=["named in config.json", "named nowhere"])
def test_tensors_that_the_architecture_has_not_are_refused(known, damaged):
    tensors = safetensors.torch.load_file(damaged / WEIGHTS)

    def edit(document):
        if known:
            tensors["head.wieght"] = torch.ones(1)
            document["tensors"]["head.wieght"] = {"shape": [1], "dtype": "float32"}
        else:
            del tensors["head.bias"], document["tensors"]["head.bias"]

    document = json.loads((damaged / CONFIG).read_text())
    edit(document)
    words = "no tensor 'head.wieght' in it; did you mean 'head.weight'" if known else "no tensor is stored for"
    rewrite(damaged, put(["tensors"], document["tensors"]), weights=safetensors.torch.save(tensors))
    with refused(ExitCode.DATA, words):
        load_network(damaged)


def test_a_header_that_asks_for_absurd_memory_is_refused(damaged):
    header = json.dumps({"head.weight": {"dtype": "F32", "shape": [10**9, 10**3], "data_offsets": [0, 4 * 10**12]}})
    weights = len(header).to_bytes(8, "little") + header.encode() + bytes(64)
    rewrite(damaged, lambda document: None, weights=weights)
    with refused(ExitCode.DATA, "no safetensors file"):
        load_network(damaged)
    rewrite(damaged, lambda document: None, weights=(2**62).to_bytes(8, "little") + b"{}")
    with refused(ExitCode.DATA, "no safetensors file"):
        load_network(damaged)


def test_other_versions_are_named_where_they_may_be_the_reason(damaged):
    rewrite(damaged, put(["versions", "timm"], "0.1"))
    load_network(damaged)
    document = json.loads((damaged / CONFIG).read_text())
    settings_of_another_version = document["settings"] | {"backbone.gone": {"width": 1}}
    rewrite(damaged, put(["settings"], settings_of_another_version))
    with refused(ExitCode.DATA, rf"backbone\.gone.*stored with timm 0\.1, here {timm.__version__}"):
        load_network(damaged)


def test_without_timm(damaged, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with refused(ExitCode.ENVIRONMENT, r"config.json: .*pip install 'ke_metric\[timm\]'"):
        load_network(damaged)
