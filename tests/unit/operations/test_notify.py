import socket

from appliance.notify import notify, watchdog_interval_s


def test_the_manager_hears_that_the_service_is_ready(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        assert notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(100) == b"READY=1"


def test_the_manager_hears_through_an_abstract_socket():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel chooses an abstract name
        name = manager.getsockname()[1:].decode()
        assert notify("WATCHDOG=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert manager.recv(100) == b"WATCHDOG=1"


def test_without_a_manager_nothing_happens(tmp_path):
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert not notify("READY=1", {"NOTIFY_SOCKET": "relative"})


def test_a_manager_that_does_not_read_cannot_stop_the_service(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        answers = [notify("STATUS=" + "x" * 4000, {"NOTIFY_SOCKET": str(tmp_path / "notify")}) for _ in range(2000)]
    assert answers[0]
    assert not answers[-1]


def test_the_sign_of_life_comes_twice_in_the_managers_patience():
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000"}) == 15
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, pid=7) == 15


def test_nobody_waits_for_a_sign_of_life():
    assert watchdog_interval_s({}) is None
    assert watchdog_interval_s({"WATCHDOG_USEC": "0"}) is None
    assert watchdog_interval_s({"WATCHDOG_USEC": "soon"}) is None
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, pid=7) is None
