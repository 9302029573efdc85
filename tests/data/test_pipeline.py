"""The pipelines: order, sharing between processes, resuming, padding, corrupt records, errors."""

import logging
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.data.pipeline import PipelineConfig, make_eval_batches, make_train_batches

SERIAL = PipelineConfig(num_threads=0)


def examples(n):
    return [{"x": np.float32(i), "name": f"n{i}"} for i in range(n)]


def take(batches, n):
    return [next(batches) for _ in range(n)]


def train(n, batch, steps, start_step=0, processes=1, seed=0, config=SERIAL, **options):
    """Global batches: the rows of all processes together, process by process."""
    parts = [
        take(
            make_train_batches(
                examples(n),
                seed=seed,
                global_batch_size=batch,
                start_step=start_step,
                process_index=i,
                process_count=processes,
                config=config,
                **options,
            ),
            steps,
        )
        for i in range(processes)
    ]
    return [
        {key: np.concatenate([part[s][key] for part in parts]) for key in parts[0][s]}
        for s in range(steps)
    ]


def ids(batches):
    return [batch["example_id"].tolist() for batch in batches]


def add_noise(example, rng):
    return {**example, "noise": rng.random()}


def test_batches_are_dicts_of_arrays_with_int64_ids():
    (batch,) = train(10, 4, 1)
    assert batch["x"].dtype == np.float32 and batch["x"].shape == (4,)
    assert batch["example_id"].dtype == np.int64
    np.testing.assert_array_equal(batch["x"], batch["example_id"])
    assert batch["name"].tolist() == [f"n{i}" for i in batch["example_id"]]


def test_every_epoch_is_a_fresh_permutation_of_everything():
    stream = sum(ids(train(10, 4, 10)), [])
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seeds_differ_and_repeat():
    a, b, again = (ids(train(50, 10, 5, seed=seed)) for seed in (1, 2, 1))
    assert a == again and a != b


@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(processes):
    """10 examples are no multiple of 4 processes: nothing is cut off for that."""
    alone = train(10, 8, 6, random_transform=add_noise)
    shared = train(10, 8, 6, processes=processes, random_transform=add_noise)
    for one, many in zip(alone, shared, strict=True):
        for key in ("example_id", "noise", "x"):
            np.testing.assert_array_equal(one[key], many[key])


def test_a_resumed_run_continues_the_unbroken_one_on_another_number_of_processes():
    unbroken = train(10, 4, 9, random_transform=add_noise)
    resumed = train(10, 4, 4, start_step=5, processes=2, random_transform=add_noise)
    for expected, got in zip(unbroken[5:], resumed, strict=True):
        np.testing.assert_array_equal(expected["noise"], got["noise"])


def test_step_is_the_position_and_seek_goes_there():
    batches = make_train_batches(
        examples(20), seed=3, global_batch_size=4, process_index=0, process_count=1
    )
    first = take(batches, 7)
    assert batches.step == 7
    batches.seek(2)
    assert batches.step == 2
    assert ids(take(batches, 5)) == ids(first[2:])
    with pytest.raises(ValueError, match="step=-1 is negative"):
        batches.seek(-1)


def test_the_process_is_asked_of_jax_by_default():
    batches = make_train_batches(examples(6), seed=0, global_batch_size=3, config=SERIAL)
    assert ids(take(batches, 2)) == ids(train(6, 3, 2))


def test_random_transform_draws_anew_every_epoch_and_not_from_the_global_state():
    np.random.seed(0)
    one = train(4, 4, 3, random_transform=add_noise)
    np.random.seed(1)
    two = train(4, 4, 3, random_transform=add_noise)
    noise = np.stack([batch["noise"] for batch in one])
    np.testing.assert_array_equal(noise, np.stack([batch["noise"] for batch in two]))
    assert np.unique(noise).size == 12


def test_transform_runs_before_random_transform_and_keeps_the_id():
    def double(example):
        return {"x": example["x"] * 2}

    def shift(example, rng):
        return {"y": example["x"] + 1}

    (batch,) = train(5, 5, 1, transform=double, random_transform=shift)
    assert sorted(batch) == ["example_id", "y"]
    np.testing.assert_array_equal(batch["y"], batch["example_id"] * 2 + 1)


def test_own_example_ids_are_kept():
    source = [{"example_id": 10**12 + i} for i in range(4)]
    batches = make_train_batches(source, seed=0, global_batch_size=4, config=SERIAL)
    assert sorted(next(batches)["example_id"]) == [10**12 + i for i in range(4)]


def test_without_shuffle_the_order_is_that_of_the_source():
    config = replace(SERIAL, shuffle=False)
    assert ids(train(5, 2, 4, config=config)) == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_remainder_wrap_fills_every_epoch_to_whole_batches():
    config = replace(SERIAL, remainder="wrap")
    stream = sum(ids(train(10, 4, 6, config=config)), [])
    for epoch in (stream[:12], stream[12:]):
        assert set(epoch) == set(range(10)) and sorted(epoch)[:4] == [0, 0, 1, 1]


def test_remainder_drop_leaves_out_others_every_epoch():
    config = replace(SERIAL, remainder="drop")
    stream = sum(ids(train(10, 4, 20, config=config)), [])
    epochs = [stream[i : i + 8] for i in range(0, 80, 8)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1 and set(stream) == set(range(10))


def test_a_source_smaller_than_a_batch_wraps_with_a_warning():
    with pytest.warns(UserWarning, match="3 examples, less than global_batch_size=8"):
        (batch,) = train(3, 8, 1)
    assert set(batch["example_id"]) == {0, 1, 2} and batch["x"].shape == (8,)
    with pytest.raises(ValueError, match='remainder="drop" leaves no batch'):
        train(3, 8, 1, config=replace(SERIAL, remainder="drop"))


def test_threads_give_the_same_batches_and_load_in_parallel():
    seen = set()

    def note_thread(example):
        seen.add(threading.get_ident())
        return example

    threaded = PipelineConfig(num_threads=3, prefetch_batches=6)
    options = {"random_transform": add_noise, "transform": note_thread}
    many = train(40, 8, 12, config=threaded, **options)
    assert threading.get_ident() not in seen
    for one, other in zip(train(40, 8, 12, **options), many, strict=True):
        np.testing.assert_array_equal(one["noise"], other["noise"])


def test_num_threads_overrides_the_config():
    seen = set()

    def note_thread(example):
        seen.add(threading.get_ident())
        return example

    train(8, 4, 2, config=PipelineConfig(num_threads=2), num_threads=0, transform=note_thread)
    assert seen == {threading.get_ident()}


class Broken:
    """Ten records; some of them are corrupt."""

    def __init__(self, corrupt, error=ValueError):
        self.corrupt, self.error = corrupt, error

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index in self.corrupt:
            raise self.error(f"bad bytes in {index}")
        return {"x": np.float32(index)}


def test_a_corrupt_record_stops_with_its_position_and_the_way_out():
    batches = make_train_batches(Broken({4}), seed=0, global_batch_size=10, config=SERIAL)
    with pytest.raises(ValueError, match=r'record 4 .* corrupt: bad bytes in 4.*corrupt="skip"'):
        next(batches)


@pytest.mark.parametrize("error", [ValueError, OSError])
@pytest.mark.parametrize("threads", [0, 2])
def test_corrupt_records_are_replaced_by_the_next_counted_and_logged(caplog, error, threads):
    config = PipelineConfig(num_threads=threads, corrupt="skip")
    batches = make_train_batches(
        Broken({4, 5, 9}, error), seed=0, global_batch_size=10, config=config
    )
    with caplog.at_level(logging.WARNING):
        for batch in take(batches, 3):
            assert sorted(batch["example_id"]) == [0, 0, 1, 2, 3, 6, 6, 6, 7, 8]
            np.testing.assert_array_equal(batch["x"], batch["example_id"])
    assert batches.corrupt_ids == (4, 5, 9)
    assert sum("skipped" in record.message for record in caplog.records) == 3


def test_too_many_corrupt_records_stop():
    config = replace(SERIAL, corrupt="skip", max_corrupt=2)
    batches = make_train_batches(Broken({1, 2, 3}), seed=0, global_batch_size=10, config=config)
    with pytest.raises(RuntimeError, match="3 records .* corrupt.*max_corrupt=2"):
        next(batches)
    everything = Broken(set(range(10)))
    batches = make_train_batches(
        everything, seed=0, global_batch_size=2, config=replace(SERIAL, corrupt="skip")
    )
    with pytest.raises(ValueError, match="all 10 records"):
        next(batches)


def test_a_mistake_in_code_is_not_taken_for_a_corrupt_record():
    config = replace(SERIAL, corrupt="skip")
    batches = make_train_batches(Broken({4}, KeyError), seed=0, global_batch_size=10, config=config)
    with pytest.raises(KeyError):
        next(batches)


@pytest.mark.parametrize("make", [make_train_batches, make_eval_batches])
def test_an_empty_split_says_so(make):
    options = {"seed": 0, "global_batch_size": 2} if make is make_train_batches else {}
    arguments = ([],) if options else ([], 2)
    with pytest.raises(ValueError, match="no examples: the split is empty"):
        make(*arguments, **options)


@pytest.mark.parametrize(("batch", "nearest"), [(6, 8), (0, 4), (5, 4)])
def test_the_batch_must_be_a_multiple_of_the_processes(batch, nearest):
    with pytest.raises(
        ValueError, match=f"={batch} is not .* 4 processes; the nearest is {nearest}"
    ):
        make_train_batches(
            examples(9), seed=0, global_batch_size=batch, process_index=0, process_count=4
        )
    with pytest.raises(ValueError, match="process_index=4 is not one of 4 processes"):
        make_eval_batches(examples(9), 4, process_index=4, process_count=4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("remainder", "keep"), ("corrupt", "ignore"), ("num_threads", -1), ("max_corrupt", -2)],
)
def test_config_names_the_bad_field(field, value):
    with pytest.raises(ValueError, match=f"PipelineConfig.{field}="):
        PipelineConfig(**{field: value})


@pytest.mark.parametrize("config", [SERIAL, PipelineConfig(num_threads=2)])
def test_evaluation_sees_everything_once_in_order_and_masks_the_padding(config):
    batches = make_eval_batches(examples(10), 4, config=config)
    assert len(batches) == 3
    for _ in range(2):  # may be iterated again
        seen = list(batches)
        assert [batch["mask"].tolist() for batch in seen] == [[True] * 4] * 2 + [
            [True] * 2 + [False] * 2
        ]
        kept = np.concatenate([batch["example_id"][batch["mask"]] for batch in seen])
        np.testing.assert_array_equal(kept, np.arange(10))
        assert seen[-1]["x"].shape == (4,) and seen[-1]["mask"].dtype == bool


@given(st.integers(1, 30), st.integers(1, 6), st.sampled_from([1, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_evaluation_on_many_processes_keeps_the_order_of_the_source(n, rows, processes):
    parts = [
        list(
            make_eval_batches(
                examples(n),
                rows * processes,
                process_index=i,
                process_count=processes,
                config=SERIAL,
            )
        )
        for i in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    batches = [
        {key: np.concatenate([b[key] for b in step]) for key in ("example_id", "mask")}
        for step in zip(*parts, strict=True)
    ]
    kept = np.concatenate([batch["example_id"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(kept, np.arange(n))


def test_evaluation_masks_corrupt_records_and_counts_them():
    batches = make_eval_batches(Broken({4, 9}), 5, config=replace(SERIAL, corrupt="skip"))
    seen = list(batches)
    mask = np.concatenate([batch["mask"] for batch in seen])
    np.testing.assert_array_equal(np.flatnonzero(~mask), [4, 9])
    assert batches.corrupt_ids == (4, 9)
    with pytest.raises(ValueError, match="record 4"):
        list(make_eval_batches(Broken({4}), 5, config=SERIAL))
