"""What the names of parts show about a file that was joined from them wrongly."""

import pytest

from pipeline.training.part_order import order_fault


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["a/part1.bin", "a/part3.bin"], "part 2 is missing"),
        (["a/part2.bin", "a/part3.bin"], "part 1 is missing"),
        (["a/part00.bin", "a/part02.bin"], "part 1 is missing"),
        (["a/part00.bin", "a/part01.bin"], "parts are missing at the end"),
        (["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], "part 2 is missing"),
        (["p9.bin", "p10.bin", "p8.bin"], "part 1 is missing"),
        (["p2.bin", "p1.bin", "p10.bin"], "part 3 is missing"),
        (["p2.bin", "p1.bin"], "p2.bin is where p1.bin belongs"),
        (["p1.bin", "p2.bin", "p2.bin"], "part 2 is there 2 times"),
        (["head.bin", "tail.bin"], "check the order of the parts: head.bin, tail.bin"),
    ],
)
def test_order_fault_names_the_part(members, expected):
    assert expected in order_fault([("package", member) for member in members])


def test_order_fault_reads_the_names_of_packages_where_members_have_one_name():
    assert "part 2 is missing" in order_fault([("model-part1", "data.bin"), ("model-part3", "data.bin")])
