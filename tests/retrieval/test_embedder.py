"""The embedder: what it loads, that its vectors are those of the scoring, and what becomes of bad pictures."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from pytorch_metric_learning.utils.inference import InferenceModel

from ke_metric import Architecture, Embedder, extract_slim, save_network
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import embed
from ke_metric.images.batches import evaluation_batches
from ke_metric.images.image_set import FolderSource, ImageSet
from ke_metric.images.pixel_store import PixelStore
from ke_metric.images.preparation import Preparation
from ke_metric.lineage.store import Lineage
from ke_metric.networks.bundle_config import NetworkCard
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.retrieval.embedder import BadPicture


@pytest.fixture(scope="module")
def embedder(grown):
    return Embedder.load(grown.folder)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Forty pictures of many sizes and kinds."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for number in range(40):
        generator = np.random.default_rng(number)
        size = generator.integers(20, 90, 2)
        image = Image.fromarray(generator.integers(0, 256, (*size, 3)).astype(np.uint8))
        found.append(folder / f"{number:02d}.{'png' if number % 3 else 'jpg'}")
        (image.convert("L") if number % 7 == 0 else image).save(found[-1])
    return found


def refused(code, function, *arguments, **options):
    with pytest.raises(KeMetricError) as caught:
        function(*arguments, **options)
    assert caught.value.exit_code == code
    return str(caught.value)


def scored_vectors(lineage, number, network, paths):
    """What `Scorer` computes: the way of a training, not of the embedder."""
    recipe = lineage.recipe
    dense, plan = LineageNetworks(recipe, 0).restore(lineage.load(number))
    images = ImageSet(
        tuple(path.name for path in paths), np.zeros(len(paths), np.int64), ("x",), FolderSource(paths[0].parent)
    )
    store = PixelStore.build(images, recipe.data.store_size, shape=recipe.data.store_shape)
    chosen = (extract_slim(dense, plan) if network == "slim" else dense).eval()
    device = torch.device("cpu")
    return embed(chosen, evaluation_batches(store, range(len(paths)), recipe=recipe, device=device))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("network", ["dense", "slim"])
def test_the_vectors_are_those_of_the_scoring_bit_for_bit(number, network, grown, paths):
    ours = Embedder.load(grown.folder, number, network)(paths)
    assert np.array_equal(ours, scored_vectors(grown, number, network, paths))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": {"image_size": 32, "store_size": 40, "store_shape": "square"}, "evaluation": {"resize": 32}},
        {"training": {"channels_last": True}},
        {"training": {"channels_last": False, "precision": "fp32"}},
        {"evaluation": {"resize": 40, "batch_size": 7}},
    ],
)
def test_the_recipe_says_how_pictures_are_prepared(fields, grow_lineage, paths, tmp_path):
    lineage = grow_lineage(tmp_path / "l", **fields)
    embedder = Embedder.load(lineage.folder, "last", "slim")
    assert np.array_equal(embedder(paths), scored_vectors(lineage, 2, "slim", paths))


def test_which_generation_and_network(grown):
    digest = {
        (number, network): Embedder.load(grown.folder, number, network).digest
        for number in (1, 2)
        for network in ("dense", "slim")
    }
    assert len(set(digest.values())) == 4
    # Both generations were scored alike, and the dense network above the slim one.
    best = Embedder.load(grown.folder)
    assert best.digest == digest[grown.best, "dense"] == digest[1, "dense"]
    assert best.description == f"{grown.folder}, generation 1, dense (Recall@1 50.0 %, slim 40.0 %)"
    assert best.reason == "the best generation kept, the better one of its networks"
    assert Embedder.load(str(grown.folder), "last").digest == digest[2, "dense"]
    assert Embedder.load(grown.folder, network="slim").digest == digest[1, "slim"]
    named = Embedder.load(grown.folder, 2, "slim")
    assert named.description == f"{grown.folder}, generation 2, slim (Recall@1 40.0 %, dense 50.0 %)"
    assert named.reason == ""


def test_weights_that_were_not_kept_are_not_the_best(grow_lineage, tmp_path):
    lineage = grow_lineage(tmp_path / "l", keep="last")
    assert (lineage.best, lineage.best_kept) == (1, 2)
    assert Embedder.load(lineage.folder).digest == Embedder.load(lineage.folder, 2, "dense").digest


def test_a_bundle_gives_the_same_vectors(embedder, paths, tmp_path):
    embedder.save(tmp_path / "b")
    again = Embedder.load(tmp_path / "b")
    assert again.digest == embedder.digest
    assert again.description == f"{tmp_path / 'b'} (lineage, {embedder.description.partition(', ')[2]})"
    again.save(tmp_path / "c")
    assert (tmp_path / "c" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()
    assert again.normalization == embedder.normalization
    batches = [batch.vectors for batch in again.stream(paths, batch_size=embedder.batch_size)]
    assert np.array_equal(np.concatenate(batches), embedder(paths))
    assert "there is a stored network already" in refused(ExitCode.USAGE, embedder.save, tmp_path / "b")
    embedder.save(tmp_path / "b", overwrite=True)


def test_the_digest_is_of_what_the_vectors_depend_on(embedder, tmp_path):
    def digest_of(**changes):
        arguments = {"architecture": embedder._architecture, "card": embedder._card, "batch_size": 9} | changes
        return Embedder(embedder.network, **arguments).digest

    assert digest_of() == embedder.digest
    how = embedder.normalization.model_dump()
    for field, value in {"mean": (0, 0, 0), "resize": 33, "store_size": 41, "store_shape": "square"}.items():
        card = NetworkCard(normalization=Preparation(**(how | {field: value})))
        assert digest_of(card=card) != embedder.digest, field
    # The split says where a network came from, not what it computes.
    assert digest_of(card=NetworkCard(normalization=embedder.normalization)) == embedder.digest
    assert digest_of(description="another name") == embedder.digest


def test_the_digest_follows_every_weight(grown):
    embedder = Embedder.load(grown.folder)
    arguments = {"architecture": embedder._architecture, "card": embedder._card}
    for tensor in embedder.network.state_dict().values():
        if tensor.is_floating_point():
            tensor[(-1,) * tensor.ndim] += 1
            changed = Embedder(embedder.network, **arguments).digest
            tensor[(-1,) * tensor.ndim] -= 1
            assert changed != embedder.digest


def test_one_picture_or_many_in_any_form(embedder, paths):
    pixels = [embedder.prepare(path) for path in paths[:5]]
    wanted = embedder(paths[:5])
    assert np.array_equal(embedder(iter(paths[:5])), wanted)
    assert np.array_equal(embedder(map(str, paths[:5])), wanted)
    opened = [Image.open(path) for path in paths[:5]]
    assert np.array_equal(embedder(opened), wanted)
    for single in (paths[0], str(paths[0]), opened[0], np.asarray(opened[0].convert("RGB"))):
        assert embedder(single).shape == (1, 8)
        np.testing.assert_allclose(embedder(single), wanted[:1], atol=1e-6)
    sized = [np.asarray(image.convert("RGB").resize((50, 40))) for image in opened]
    batch = np.stack(sized)
    assert np.array_equal(embedder(batch), embedder(sized))
    assert np.array_equal(embedder(torch.from_numpy(batch).permute(0, 3, 1, 2)), embedder(sized))
    assert np.array_equal(embedder.embed_pixels(np.stack(pixels)), wanted)


def test_arrays_of_paths_are_as_many_pictures(embedder, paths):
    wanted = embedder(paths[:3])
    for given_paths in (np.array(list(map(str, paths[:3]))), np.array(paths[:3], dtype=object)):
        assert np.array_equal(embedder(given_paths), wanted)


def test_frames_of_one_file_are_taken_as_they_come(embedder, tmp_path):
    frames = [Image.new("RGB", (60, 60), (30 * n, 250 - 30 * n, 90)) for n in range(8)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as animation:
        copies = [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
        found = embedder(ImageSequence.Iterator(animation))
    assert len(np.unique(found, axis=0)) == 8
    assert np.array_equal(found, embedder(copies))


def test_one_lazily_opened_picture_many_times(embedder, tmp_path):
    Image.effect_noise((900, 900), 90).save(tmp_path / "large.png")
    for _ in range(3):
        with Image.open(tmp_path / "large.png") as image:
            assert np.array_equal(embedder([image] * 6), embedder([tmp_path / "large.png"] * 6))


def test_a_damaged_picture_that_was_opened_lazily_is_a_bad_one(embedder, paths, tmp_path):
    Image.effect_noise((90, 90), 90).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    told: list[BadPicture] = []
    with Image.open(tmp_path / "half.png") as image:
        assert embedder([paths[0], image, paths[1]], on_bad=told.append).shape == (2, 8)
        assert [(bad.position, bad.name) for bad in told] == [(1, "picture 1")]
        assert "picture 1: cannot be decoded" in refused(ExitCode.DATA, embedder, [paths[0], image])


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_nothing_are_refused(size, embedder, paths):
    said = refused(ExitCode.USAGE, lambda: list(embedder.stream(paths, batch_size=size)))
    assert "must be a whole number of at least 1" in said


def test_nothing_gives_nothing(embedder):
    for nothing in ([], iter(()), np.empty((0, 9, 9, 3), np.uint8), torch.empty(0, 3, 9, 9)):
        vectors = embedder(nothing)
        assert vectors.shape == (0, 8)
        assert vectors.dtype == np.float32


def test_vectors_do_not_depend_on_the_company(embedder, paths):
    whole = embedder(paths)
    np.testing.assert_allclose(embedder(paths[::-1])[::-1], whole, atol=1e-5)
    for size in (1, 3, 40, 1000):
        parts = [batch.vectors for batch in embedder.stream(paths, batch_size=size)]
        assert [len(part) for part in parts] == [min(size, 40 - start) for start in range(0, 40, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_batches_say_where_their_pictures_were(embedder, paths):
    batches = list(embedder.stream(paths, batch_size=16))
    assert [batch.positions.tolist() for batch in batches] == [[*range(16)], [*range(16, 32)], [*range(32, 40)]]
    assert all(batch.bad == () for batch in batches)


def test_the_first_bad_picture_is_an_error_that_names_it(embedder, paths, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    message = refused(ExitCode.DATA, embedder, [*paths[:3], tmp_path / "bad.png", tmp_path / "none.png"])
    assert str(tmp_path / "bad.png") in message
    assert "picture 1: " in refused(ExitCode.DATA, embedder, [np.asarray(Image.open(paths[1])), 3.5])


def test_bad_pictures_are_left_out_by_name(embedder, paths, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    given = [paths[0], tmp_path / "bad.png", paths[1], 7, str(tmp_path / "none.png")]
    told: list[BadPicture] = []
    vectors = embedder(given, on_bad=told.append)
    np.testing.assert_allclose(vectors, embedder(paths[:2]), atol=1e-6)
    assert [(bad.position, bad.name) for bad in told] == [
        (1, str(tmp_path / "bad.png")), (3, "picture 3"), (4, str(tmp_path / "none.png")),
    ]  # fmt: skip
    assert all(bad.name in bad.reason for bad in told)
    assert embedder([7, 8], on_bad=told.append).shape == (0, 8)


@settings(max_examples=25, deadline=None)
@given(good=st.lists(st.booleans(), max_size=30), batch_size=st.integers(1, 7))
def test_every_picture_is_embedded_or_told_once(good, batch_size, embedder, paths):
    given_pictures = [paths[number] if fine else None for number, fine in enumerate(good)]
    batches = list(embedder.stream(given_pictures, skip_bad=True, batch_size=batch_size))
    seen = [position for batch in batches for position in batch.positions.tolist()]
    told = [bad.position for batch in batches for bad in batch.bad]
    assert seen == [number for number, fine in enumerate(good) if fine]
    assert told == [number for number, fine in enumerate(good) if not fine]
    assert all(len(batch.positions) == len(batch.vectors) for batch in batches)
    if seen:
        wanted = embedder([paths[number] for number in seen])
        np.testing.assert_allclose(np.concatenate([batch.vectors for batch in batches]), wanted, atol=1e-5)


def test_an_iterator_is_read_only_as_far_as_is_needed(embedder, paths):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield paths[len(taken) % 40]

    stream = embedder.stream(endless(), batch_size=4)
    next(stream)
    next(stream)
    assert len(taken) < 8 + 5 * 64
    before = len(taken)
    next(stream)
    assert len(taken) - before <= 4 + 1
    stream.close()


def test_pictures_are_decoded_in_threads(embedder, paths, monkeypatch):
    threads = set()
    original = Embedder.prepare

    def watched(self, picture, name="picture"):
        threads.add(threading.get_ident())
        return original(self, picture, name)

    monkeypatch.setattr(Embedder, "prepare", watched)
    embedder(paths)
    assert threading.get_ident() not in threads


def test_several_threads_may_embed_at_once(embedder, paths):
    wanted, found = embedder(paths), {}

    def work(number):
        found[number] = embedder(paths)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(found[number], wanted) for number in range(4))


def test_the_network_runs_in_eval_mode_without_gradients(grown, paths):
    embedder = Embedder.load(grown.folder)
    assert not any(module.training for module in embedder.network.modules())
    before = {name: value.clone() for name, value in embedder.network.state_dict().items()}
    embedder(paths)
    assert all(value.equal(before[name]) for name, value in embedder.network.state_dict().items())
    network = embedder.network.train()
    assert not Embedder(network, architecture=embedder._architecture, card=embedder._card).network.training


def as_unit(embedder, paths):
    return torch.from_numpy(np.stack([embedder.prepare(path) for path in paths])).permute(0, 3, 1, 2).float() / 255


def test_the_plain_module_gives_the_same_vectors(embedder, paths):
    module = embedder.as_module()
    images = as_unit(embedder, paths[:16])
    with torch.no_grad():
        np.testing.assert_allclose(module(images).numpy(), embedder(paths[:16]), atol=1e-5)
    assert not module.training
    assert module.network is embedder.network
    # Standardisation is no weight: the state is the network's.
    assert {name.removeprefix("network.") for name in module.state_dict()} == set(embedder.network.state_dict())
    assert module(images.requires_grad_()).requires_grad
    assert next(module.double().parameters()).dtype == module.mean.dtype == torch.float64
    module.float()


def test_it_is_the_trunk_of_an_inference_model(embedder, paths):
    pytest.importorskip("faiss")
    model = InferenceModel(embedder.as_module())
    images = as_unit(embedder, paths)
    vectors = embedder(paths)
    np.testing.assert_allclose(model.get_embeddings(images).numpy(), vectors, atol=1e-5)
    model.train_knn(images)
    _, found = model.get_nearest_neighbors(images[:10], 3)
    wanted = np.argsort(-(vectors[:10] @ vectors.T), axis=1, kind="stable")[:, 0]
    assert found[:, 0].tolist() == wanted.tolist()


def test_what_cannot_be_loaded(grown, tmp_path):
    load = Embedder.load
    assert "no generation 9" in refused(ExitCode.LINEAGE, load, grown.folder, 9)
    assert "did you mean 'last'" in refused(ExitCode.USAGE, load, grown.folder, "lsat")
    assert "must be 'dense' or 'slim'" in refused(ExitCode.USAGE, load, grown.folder, 1, "both")
    assert "does not exist" in refused(ExitCode.DATA, load, tmp_path / "none")
    assert "config.json" in refused(ExitCode.DATA, load, tmp_path)
    for device in ("nonsense", "meta", "privateuseone"):
        assert "cannot be used" in refused(ExitCode.ENVIRONMENT, load, grown.folder, device=device)


def test_weights_that_were_not_kept(grow_lineage, tmp_path):
    lineage = grow_lineage(tmp_path / "l", keep="last")
    Embedder.load(lineage.folder)
    assert "not kept" in refused(ExitCode.LINEAGE, Embedder.load, lineage.folder, 1)


@pytest.mark.parametrize("fields", [{"split": {"kind": "wels"}}, {"method": {"name": "slim_alone"}}])
def test_where_there_is_no_slim_network_the_dense_one_is_not_taken_silently(fields, grow_lineage, tmp_path, paths):
    lineage = grow_lineage(tmp_path / "l", **fields)
    said = refused(ExitCode.LINEAGE, Embedder.load, lineage.folder, network="slim")
    assert "there is no slim network" in said
    assert "take the dense one" in said
    taken = Embedder.load(lineage.folder, "last")
    assert ", dense (" in taken.description
    assert np.array_equal(taken(paths), scored_vectors(lineage, 2, "dense", paths))


def test_a_last_generation_that_is_slim_already(grow_lineage, tmp_path, paths):
    lineage = grow_lineage(tmp_path / "l", method={"slim_last": True})
    dense, slim = (Embedder.load(lineage.folder, 2, network) for network in ("dense", "slim"))
    assert dense.digest == slim.digest
    assert np.array_equal(dense(paths), slim(paths))


@pytest.mark.parametrize("network", ["dense", "slim"])
def test_the_embedding_of_a_classifier_is_what_its_head_sees(network, grow_lineage, tmp_path, paths):
    lineage = grow_lineage(tmp_path / "l", task="classification", network={"backbone": "timm/test_resnet"})
    embedder = Embedder.load(lineage.folder, 2, network)
    dense, plan = LineageNetworks(lineage.recipe, 2).restore(lineage.load(2))
    classifier = (extract_slim(dense, plan) if network == "slim" else dense).eval()
    pixels = np.stack([embedder.prepare(path) for path in paths])
    with torch.no_grad():
        images = (as_unit(embedder, paths) - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / torch.tensor(
            [0.1, 0.2, 0.3]
        ).view(1, 3, 1, 1)
        features = classifier.backbone(images)
    assert embedder.dimension == features.shape[1] == classifier.head.in_features
    lengths = features.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(embedder.embed_pixels(pixels), features / lengths, atol=1e-5)
    embedder.save(tmp_path / "b")
    again = Embedder.load(tmp_path / "b")
    assert again.digest == embedder.digest
    assert np.array_equal(again.embed_pixels(pixels), embedder.embed_pixels(pixels))
    assert np.array_equal(embedder(paths), np.concatenate([batch.vectors for batch in embedder.stream(paths)]))


def test_a_classifier_of_a_library_has_no_embeddings(tmp_path):
    architecture = Architecture.timm("test_resnet", num_classes=3)
    network = timm.create_model("test_resnet", num_classes=3).eval()
    card = NetworkCard(normalization=Preparation(image_size=32, mean=(0, 0, 0), std=(1, 1, 1)))
    save_network(network, tmp_path / "b", architecture=architecture, card=card)
    assert "a classifier of a library has logits" in refused(ExitCode.DATA, Embedder.load, tmp_path / "b")


def test_a_bundle_of_before_its_origin_was_recorded(grown, paths, tmp_path):
    dense, plan = LineageNetworks(grown.recipe, 0).restore(grown.load(2))
    architecture, slim = Architecture.of_recipe(grown.recipe), extract_slim(dense, plan)
    save_network(slim, tmp_path / "b", architecture=architecture, card=NetworkCard.of_recipe(grown.recipe))
    assert not {"origin", "logit_scale"} & set(json.loads((tmp_path / "b" / "config.json").read_text()))
    opened, named = Embedder.load(tmp_path / "b"), Embedder.load(grown.folder, 2, "slim")
    assert opened.digest == named.digest
    assert opened.description == f"{tmp_path / 'b'} (slim, split rate 0.5)"
    vectors = [batch.vectors for batch in opened.stream(paths, batch_size=named.batch_size)]
    assert np.array_equal(np.concatenate(vectors), named(paths))


def test_a_bundle_that_does_not_say_how_pictures_are_prepared(grown, tmp_path):
    dense, _ = LineageNetworks(grown.recipe, 0).restore(grown.load(2))
    save_network(dense, tmp_path / "b", architecture=Architecture.of_recipe(grown.recipe))
    assert "does not say how pictures are prepared" in refused(ExitCode.DATA, Embedder.load, tmp_path / "b")


def test_a_damaged_bundle(embedder, tmp_path):
    embedder.save(tmp_path / "b")
    weights = (tmp_path / "b" / "model.safetensors").read_bytes()
    (tmp_path / "b" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "model.safetensors" in refused(ExitCode.DATA, Embedder.load, tmp_path / "b")


def test_a_lineage_that_was_moved_is_the_same(grown, tmp_path, embedder):
    moved = shutil.copytree(grown.folder, tmp_path / "moved")
    assert Embedder.load(moved).digest == embedder.digest
    assert Path(moved, "lineage.json").is_file()
    assert json.loads(Path(moved, "lineage.json").read_text())
    assert Lineage(moved).numbers == [1, 2]


@pytest.mark.parametrize("wrong", [2.5, True, ["best"]])
def test_a_generation_is_a_whole_number_or_a_word(grown, wrong):
    assert "must be a whole number, 'last' or 'best'" in refused(
        ExitCode.USAGE, lambda: Embedder.load(grown.folder, wrong)
    )
    assert Embedder.load(grown.folder, np.int64(1)).digest == Embedder.load(grown.folder, "1").digest


@pytest.mark.parametrize("wrong", [3, None, 2.5])
def test_what_is_no_picture_is_refused_in_words(embedder, wrong):
    assert "is no picture, nor several" in refused(ExitCode.DATA, lambda: embedder(wrong))


@pytest.mark.parametrize("wrong", ["3", True, 2.5])
def test_a_batch_size_is_a_whole_number(embedder, paths, wrong):
    said = refused(ExitCode.USAGE, lambda: list(embedder.stream(paths, batch_size=wrong)))
    assert f"batch_size = {wrong!r}" in said
