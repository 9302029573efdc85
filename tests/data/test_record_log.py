import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from jaxlab.data.record_log import INDEX, RECORDS, ROW, RecordReader, RecordWriter


def content(record_id):
    return np.random.default_rng(record_id % 2**32).bytes(10 + record_id % 7)


def write(folder, ids):
    with RecordWriter(folder) as writer:
        writer.append(ids, [content(i) for i in ids])
        return writer.num_cut


def check(folder, ids):
    reader = RecordReader(folder)
    assert reader.ids.tolist() == sorted(ids)
    for i in ids:
        assert reader.read(i).tobytes() == content(i)


def test_records_come_back_whatever_the_order(tmp_path):
    ids = [7, 2**40, 3, -5, 0]
    write(tmp_path, ids[:3])
    write(tmp_path, ids[3:])
    check(tmp_path, ids[::-1])
    reader = RecordReader(tmp_path)
    assert 7 in reader and 8 not in reader
    assert len(reader) == 5
    with pytest.raises(KeyError, match="no record of id 8"):
        reader.read(8)


def test_no_id_is_written_twice(tmp_path):
    write(tmp_path, [1, 2])
    for ids in ([3, 2], [4, 4]):
        with pytest.raises(ValueError, match="have one already"):
            write(tmp_path, ids)
    check(tmp_path, [1, 2])


@pytest.mark.parametrize("lost", [1, 9, 40])
def test_a_truncated_tail_is_told_and_then_written_again(tmp_path, lost):
    ids = list(range(10))
    write(tmp_path, ids)
    path = tmp_path / RECORDS
    os.truncate(path, path.stat().st_size - lost)
    with pytest.raises(ValueError, match="cut short or unfinished: . records are whole"):
        RecordReader(tmp_path)
    with RecordWriter(tmp_path) as writer:
        missing = [i for i in ids if i not in writer]
        assert missing == list(range(10 - writer.num_cut, 10)) != []
        writer.append(missing, [content(i) for i in missing])
    check(tmp_path, ids)


@pytest.mark.parametrize("lost", [1, ROW.itemsize, ROW.itemsize + 5])
def test_a_truncated_index_is_told_and_then_written_again(tmp_path, lost):
    ids = list(range(10))
    write(tmp_path, ids)
    path = tmp_path / INDEX
    os.truncate(path, path.stat().st_size - lost)
    with pytest.raises(ValueError, match="cut short or unfinished"):
        RecordReader(tmp_path)
    with RecordWriter(tmp_path) as writer:
        missing = [i for i in ids if i not in writer]
        assert missing
        writer.append(missing, [content(i) for i in missing])
    check(tmp_path, ids)


def test_a_tail_of_zeros_is_given_up(tmp_path):
    write(tmp_path, [1, 2, 3])
    with (tmp_path / RECORDS).open("r+b") as file:
        file.seek(-4, 2)
        file.write(bytes(4))
    with pytest.raises(ValueError, match="record of id 3 is damaged"):
        RecordReader(tmp_path).read(3)
    assert write(tmp_path, [3]) == 1
    check(tmp_path, [1, 2, 3])


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write(tmp_path, [1, 2])
    (tmp_path / RECORDS).write_bytes(bytes(100))
    with pytest.raises(ValueError, match="none of 2 records is whole"):
        RecordWriter(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected records"):
        RecordReader(tmp_path / "elsewhere")


def keep_writing(folder):
    with RecordWriter(folder) as writer:
        for i in range(10**6):
            writer.append([i], [content(i)])


@pytest.mark.multiprocess
def test_what_a_killed_writer_wrote_is_kept(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=keep_writing, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / INDEX).exists() or (tmp_path / INDEX).stat().st_size < 5000:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with RecordWriter(tmp_path) as writer:
        written = len(writer)
        assert written >= 5000 // ROW.itemsize
        writer.append([written], [content(written)])
    check(tmp_path, list(range(written + 1)))
