"""Searching with pictures as a program does: the same answers whatever a picture is given as."""

import numpy as np
import pytest
from PIL import Image

from ke_metric import Embedder, Index
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.index import StoreSettings
from ke_metric.retrieval.picture_list import list_pictures
from ke_metric.retrieval.query import SearchOptions, answer_queries, search_pictures
from ke_metric.retrieval.ranking import Expansion, Reranking, ranked_search
from ke_metric.stores.contract import Item, Where


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures of noise in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(1)
    for number in range(12):
        path = folder / ("crow" if number % 2 else "jay") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def index(grown, photos, tmp_path_factory):
    """Their index."""
    listed = list_pictures([photos])
    embedder = Embedder.load(grown.folder)
    folder = tmp_path_factory.mktemp("index") / "i"
    with Index.create(folder, embedder=embedder, settings=StoreSettings(kind="memmap")) as made:
        made.add(listed.items, embedder([item.path for item in listed.items]), digest=embedder.digest)
        yield made


def found(answers):
    return [[(result.id, result.similarity) for result in answer.results] for answer in answers]


def test_paths_items_and_images_find_the_same(index, photos):
    paths = sorted(photos.rglob("*.png"))
    items = list_pictures([photos]).items
    options = SearchOptions(k=4, keep_self=True)
    by_path = list(search_pictures(index, paths, options))
    assert [answer.query.path for answer in by_path] == [str(path) for path in paths]
    assert found(by_path) == found(search_pictures(index, iter(map(str, paths)), options))
    assert sorted(found(by_path)) == sorted(found(search_pictures(index, items, options)))
    images = list(search_pictures(index, map(Image.open, paths), options))
    assert found(by_path) == found(images)
    assert [answer.query for answer in images[:2]] == [Item("picture 0"), Item("picture 1")]
    (one,) = search_pictures(index, paths[0], options)
    assert found([one]) == found(by_path[:1])


def test_the_own_picture_is_left_out_and_tells_its_label(index, photos):
    path = photos / "crow" / "3.png"
    (answer,) = search_pictures(index, [path], SearchOptions(k=20))
    assert answer.own_ids == ("crow/3.png",)
    assert answer.query.label == "crow"
    assert len(answer.results) == 11
    (kept,) = search_pictures(index, [path], SearchOptions(k=20, keep_self=True))
    assert (kept.own_ids, kept.results[0].id) == ((), "crow/3.png")


def test_a_label_of_the_index_is_that_of_a_folder(index, photos, tmp_path):
    place = tmp_path / "jay" / "new.png"
    place.parent.mkdir()
    Image.open(photos / "crow" / "3.png").save(place)
    assert [answer.query.label for answer in search_pictures(index, [place])] == ["jay"]
    assert [answer.query.label for answer in search_pictures(index, [place], labels=False)] == [""]


@pytest.mark.parametrize(
    "ranking",
    [{}, {"expand": Expansion(3)}, {"rerank": Reranking(4, 2, 0.3, 12)}, {"where": Where.parse('label == "jay"')}],
)
def test_answers_are_those_of_a_ranked_search(index, photos, ranking):
    path = photos / "jay" / "2.png"
    (answer,) = search_pictures(index, [path], SearchOptions(k=5, **ranking))
    hits = ranked_search(index.store, index.embedder([path]), 5, exclude=["jay/2.png"], **ranking)
    assert [result.id for result in answer.results] == [item.id for item in hits.items()[0]]
    assert [result.similarity for result in answer.results] == hits.similarities[0, : len(answer.results)].tolist()


def test_a_query_without_a_path_is_no_items_own_picture(index, tmp_path):
    vectors = np.eye(2, index.dimension, dtype=np.float32)
    with Index.create(tmp_path / "i", digest="0" * 64, dimension=index.dimension) as bare:
        bare.add([Item("a"), Item("b")], vectors, digest="0" * 64)
        queries = [Item("picture 0"), Item("picture 1")]
        answers = answer_queries(bare.store, queries, vectors, SearchOptions(k=2))
        assert [[result.id for result in answer.results] for answer in answers] == [["a", "b"], ["b", "a"]]
        without = answer_queries(bare.store, queries, vectors, SearchOptions(k=2), exclude=[["a"], []], compare=False)
        assert [[result.id for result in answer.results] for answer in without] == [["b"], ["b", "a"]]
        assert [answer.nearest for answer in answers] == [0.0, 0.0]
        assert [answer.nearest for answer in without] == [None, None]


def test_bad_pictures_are_told_or_an_error(index, photos, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = [tmp_path / "bad.png", photos / "jay" / "2.png"]
    bad = []
    answers = list(search_pictures(index, pictures, on_bad=bad.append))
    assert [answer.query.path for answer in answers] == [str(pictures[1])]
    assert [one.name for one in bad] == [str(pictures[0])]
    with pytest.raises(KeMetricError, match=r"bad\.png") as caught:
        list(search_pictures(index, pictures))
    assert caught.value.exit_code is ExitCode.DATA


def test_another_network_is_refused(index, grown, photos):
    with pytest.raises(KeMetricError, match="another network"):
        list(search_pictures(index, [photos / "jay" / "2.png"], embedder=Embedder.load(grown.folder, 2)))


def test_more_results_than_re_ranking_looks_at_are_refused():
    with pytest.raises(KeMetricError, match="re-ranking looks at 12") as caught:
        SearchOptions(k=13, rerank=Reranking(4, 2, 0.3, 12))
    assert caught.value.exit_code is ExitCode.USAGE
