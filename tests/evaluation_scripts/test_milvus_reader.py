"""The table of `eval.stores.milvus_reader`: milliseconds of a search, and ratios within a round."""

from eval.stores.milvus_reader import table


def test_times_are_of_one_search_and_ratios_of_one_round():
    found = {
        "before": [{"wall": 8.0, "cpu": 0.4}, {"wall": 4.0, "cpu": 0.2}, {"wall": 6.0, "cpu": 0.3}],
        "now": [{"wall": 2.0, "cpu": 0.1}, {"wall": 2.0, "cpu": 0.1}, {"wall": 1.0, "cpu": 0.1}],
    }
    assert table(found, 10)[2:] == [
        "| one search, on the clock | 600.00 (400.00-800.00) | 200.00 (100.00-200.00) | 4.00 (2.00-6.00) |",
        "| CPU time of the client | 30.00 (20.00-40.00) | 10.00 (10.00-10.00) | 3.00 (2.00-4.00) |",
    ]
