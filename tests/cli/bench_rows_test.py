"""What compare_open_clip.py makes of given figures; run by bench_test.sh with the folder of the benchmarks."""
import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv.pop(1))
import compare_open_clip as compare  # noqa: E402
import machine  # noqa: E402


def measure(**changes):
    return compare.Measure(**{"name": "row", "title": "a row", "unit": "samples/s", "key": "rate", "kind": "rate", "least": 1.5, "aim": 2.5, **changes})


def row(of, peer, ours, others=0.0):
    results = {"ours": [{of.key: value} for value in ours]}
    if peer is not None:
        results["peer"] = [{of.key: value} for value in peer]
    return compare.row_of(of, results, others)


class RowTest(unittest.TestCase):
    def test_a_rate_is_compared_by_medians(self):
        made = row(measure(), [10, 12, 11], [22, 44, 20])
        self.assertEqual((made["peer"]["median"], made["ours"]["median"], made["ratio"]), (11, 22, 2))
        self.assertAlmostEqual(made["peer"]["spread"], 2 / 11)
        self.assertEqual((made["least_met"], made["aim_met"]), (True, False))

    def test_less_time_and_less_memory_are_better(self):
        self.assertEqual(row(measure(kind="seconds"), [3], [1])["ratio"], 3)
        made = row(measure(kind="memory", least=0.8, aim=0.5), [1000], [700])
        self.assertEqual((made["ratio"], made["least_met"], made["aim_met"]), (0.7, True, False))

    def test_targets_of_a_value_need_no_peer(self):
        made = row(measure(kind="seconds", least=3, aim=1, on_value=True), None, [2])
        self.assertEqual((made["least_met"], made["aim_met"], made["least"]), (True, False, "3 samples/s"))
        self.assertNotIn("ratio", made)
        self.assertTrue(row(measure(least=78, aim=85, on_value=True), None, [80])["least_met"])

    def test_other_load_marks_the_row(self):
        self.assertFalse(row(measure(), [1], [2], machine.QUIET_CORES / 2)["disturbed"])
        self.assertTrue(row(measure(), [1], [2], machine.QUIET_CORES * 2)["disturbed"])


class ReportTest(unittest.TestCase):
    def test_scaling_comes_from_the_rows_of_one_and_two_workers(self):
        rows = {"loader_imagenet_1": row(measure(), [100], [400]), "loader_imagenet_2": row(measure(), [180], [760])}
        compare.add_scaling(rows)
        self.assertAlmostEqual(rows["loader_scaling"]["ours"]["median"], 1.9)
        self.assertAlmostEqual(rows["loader_scaling"]["peer"]["median"], 1.8)
        self.assertTrue(rows["loader_scaling"]["least_met"])

    def test_the_table_has_a_line_for_each_row(self):
        report = {"date": "2026-01-02T03:04:05", "machine": machine.describe(), "versions": {"ours": "us", "open_clip": "3", "torch": "2"},
                  "rows": {"row": row(measure(), [10, 11], [22, 23], 1.0)}, "left_out": {"cifar": "[x] does not exist"}}
        table = compare.markdown(report)
        self.assertIn("| a row (!) | 10.5 ± 5 % | 22.5 ± 2 % | samples/s | 2.14x | 1.5x ✓ | 2.5x ✗ |", table)
        self.assertIn("Left out: cifar, [x] does not exist.", table)

    def test_a_result_file_that_is_none_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.json"
            self.assertEqual(compare.load_report(file), {"rows": {}})
            file.write_text("{")
            with self.assertRaisesRegex(compare.Problem, "is no result of an earlier run"):
                compare.load_report(file)
            compare.write(file, json.dumps({"rows": {"a": {}}}))
            self.assertEqual(compare.load_report(file)["rows"], {"a": {}})

    def test_a_program_that_fails_is_named_with_its_last_line(self):
        with self.assertRaisesRegex(compare.Problem, "ended with 3: last"):
            compare.last_json(["sh", "-c", "echo first >&2; echo last >&2; exit 3"])


if __name__ == "__main__":
    unittest.main()
