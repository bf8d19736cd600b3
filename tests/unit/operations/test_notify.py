import socket
import subprocess
import sys

from appliance.notify import handed_sockets, notify, watchdog_interval_s


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


TAKE_OVER = """
import os, sys
from appliance.notify import handed_sockets
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="x")
(taken,) = handed_sockets()
assert taken.getsockname()[1] == int(sys.argv[1])
assert not taken.get_inheritable()
assert handed_sockets() == []
assert not [name for name in os.environ if name.startswith("LISTEN_")]
"""


def test_a_listener_of_the_manager_is_taken_over_once_and_not_inherited_further():
    with socket.create_server(("127.0.0.1", 0)) as manager:
        done = subprocess.run(  # the shell puts it where a manager puts it
            ["bash", "-c", f'exec "$@" 3<&{manager.fileno()}', "bash", sys.executable, "-c", TAKE_OVER,
             str(manager.getsockname()[1])],
            pass_fds=[manager.fileno()], capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_socket_that_is_meant_for_another_process_is_left_alone():
    assert handed_sockets({}) == []
    assert handed_sockets({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, pid=8) == []
    assert handed_sockets({"LISTEN_PID": "7", "LISTEN_FDS": "many"}, pid=7) == []


LISTEN = """
import os, sys
from appliance.errors import GatewayError
from appliance.gateway import server
from appliance.settings import Listen
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
try:
    found = server.listen(Listen(port=int(sys.argv[1])))
    print(found.getsockname()[1])
except GatewayError as error:
    print(error.code, error.remedy)
"""


def listen_on(port: int) -> str:
    """What the gateway does with a handed listener on a free port, when it is configured for `port` (0: that one)."""
    with socket.create_server(("127.0.0.1", 0)) as manager:
        own = manager.getsockname()[1]
        done = subprocess.run(
            ["bash", "-c", f'exec "$@" 3<&{manager.fileno()}', "bash", sys.executable, "-c", LISTEN, str(port or own)],
            pass_fds=[manager.fileno()], capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.replace(str(own), "its own")


def test_the_gateway_serves_on_the_listener_that_the_manager_holds():
    assert listen_on(0) == "its own\n"


def test_a_listener_on_another_address_than_the_configured_one_is_refused():
    said = listen_on(9)
    assert said.startswith("GATEWAY_ADDRESS")
    assert "scripts/install-units" in said
