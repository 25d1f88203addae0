"""The benchmark of classification reads its data sets, and judges groups of labels."""

import gzip

import numpy as np

from bench.classification import GROUPS, grouped, read_data


def test_labels_of_a_data_set_are_read_in_its_form(tmp_path):
    (tmp_path / "sst2_train.txt").write_text("".join(f"{i % 2} film {i}\n" for i in range(20)))
    (tmp_path / "sst2_dev.txt").write_text("1 a moving film\n0 a dull one\n")
    data = read_data("sst2", tmp_path)
    assert data.reported.texts == ["a moving film", "a dull one"] and not data.has_several
    assert data.reported.labels_NC.tolist() == [[False, True], [True, False]]
    assert len(data.train.texts) == 18 and not {*data.train.texts} & {*data.held_out.texts}
    names = [name for names in GROUPS.values() for name in names]
    (tmp_path / "goemotions_labels.txt").write_text("\n".join(names))
    rows = "".join(f"text {i}\t{i % 3},{3 + i % 2}\tid{i}\n" for i in range(20))
    (tmp_path / "goemotions_train.tsv.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "goemotions_dev.tsv").write_text("one\t0\ta\ntwo\t1,23\tb\n")
    data = read_data("goemotions", tmp_path)
    assert data.has_several and data.reported.labels_NC.sum(axis=1).tolist() == [1, 2]
    assert len(names) == len({*names}) == 24


def test_group_has_the_greatest_value_of_its_labels():
    values_NC = np.array([[0.1, 0.6, 0.3], [0.2, 0.0, 0.9]])
    assert grouped(values_NC, [[0, 1], [2]]).tolist() == [[0.6, 0.3], [0.2, 0.9]]
