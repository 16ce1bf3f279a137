"""The upstream suite's report."""
from cluster import conformance
from cluster.conformance import Result

REPORT = [{"SpecReports": [
    {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
    {"LeafNodeType": "It", "State": "failed", "RunTime": 66_700_000_000, "StartTime": "2026-01-01T00:00:09Z",
     "ContainerHierarchyTexts": ["[sig-network] Netpol [LinuxOnly]", "server and client using UDP"],
     "LeafNodeText": "should support a 'default-deny-ingress' policy [Feature:NetworkPolicy]"},
    {"LeafNodeType": "It", "State": "passed", "RunTime": 3_940_000_000, "StartTime": "2026-01-01T00:00:01Z",
     "ContainerHierarchyTexts": ["[sig-network] Netpol"], "LeafNodeText": "should support allow-all policy"},
    {"LeafNodeType": "It", "State": "skipped", "RunTime": 0, "StartTime": "", "ContainerHierarchyTexts": [], "LeafNodeText": "x"},
]}]


def test_a_report_gives_the_tests_that_ran_in_the_order_they_ran():
    assert conformance.parse(REPORT) == [
        Result("Netpol should support allow-all policy", "passed", 3.9),
        Result("Netpol server and client using UDP should support a 'default-deny-ingress' policy", "failed", 66.7),
    ]


def test_a_set_up_that_failed_is_named():
    assert conformance.set_up_failure(REPORT) == ""
    broken = [{"SpecReports": [{"LeafNodeType": "SynchronizedBeforeSuite", "State": "failed", "Failure": {"Message": "no nodes"}}]}]
    assert conformance.set_up_failure(broken) == "SynchronizedBeforeSuite: no nodes"


def test_the_lines_that_say_how_a_test_ended_are_understood():
    for line, failed in [("• [3.912 seconds]\n", False), ("• [FAILED] [66.731 seconds]\n", True), ("• [TIMEDOUT] [9.0 seconds]\n", True)]:
        ended = conformance.ENDED.match(line)
        assert ended and bool(ended.group(1)) == failed
    assert not conformance.ENDED.match("[SynchronizedAfterSuite] PASSED [0.005 seconds]\n")
