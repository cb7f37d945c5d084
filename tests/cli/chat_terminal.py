"""chat_terminal.py COMMAND...: types at a conversation on a terminal of its own: Ctrl-C clears a line, stops a reply,
leaves when it comes twice; SIGTERM ends with exit code 14."""
import os
import pty
import signal
import sys
import time


class Terminal:
    def __init__(self, command):
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(command[0], command)
        os.set_blocking(self.fd, False)

    def read(self):
        try:
            self.seen += os.read(self.fd, 4096)
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:  # the other end is gone
            return False
        return True

    def expect(self, text, what):
        """Waits for `text`, and forgets all up to it."""
        end = time.time() + 60
        while text not in self.seen:
            if not self.read() or time.time() > end:
                sys.exit(f"{what}: no {text!r} in {self.seen[-400:]!r}")
        self.seen = self.seen[self.seen.index(text) + len(text):]

    def type(self, text):
        os.write(self.fd, text)

    def leave(self, code, what):
        end = time.time() + 60
        while self.read() and time.time() < end:
            pass
        got = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if got != code:
            sys.exit(f"{what}: exit code {got}, not {code}: {self.seen[-400:]!r}")


t = Terminal(sys.argv[1:])
t.expect(b"> ", "the prompt")
t.type(b"this is the first line")
t.expect(b"first line", "echo")
t.type(b"\x03")
t.expect(b"Ctrl-C again", "Ctrl-C in a line")
t.expect(b"> ", "the prompt after Ctrl-C")
t.type(b"Write a long story about a king, a castle and a second war.\r")
t.expect(b"\n", "the line's end")
for _ in range(100):  # the reply has begun
    t.read()
t.expect(b"", "the reply")
while len(t.seen) < 5:
    t.read()
t.type(b"\x03")
t.expect(b"; cancelled", "Ctrl-C in a reply")
t.expect(b"> ", "the prompt after a stopped reply")
t.type(b"\x03")
t.expect(b"Ctrl-C again", "Ctrl-C at the prompt")
t.expect(b"> ", "the prompt after it")
t.type(b"x")
t.expect(b"x", "echo")
t.type(b"\x03")
t.expect(b"Ctrl-C again", "Ctrl-C after typing is a first one")
t.expect(b"> ", "the prompt after it")
t.type(b"\x03")
t.leave(0, "Ctrl-C twice")

t = Terminal(sys.argv[1:])
t.expect(b"> ", "the prompt")
t.type(b"half a line")
t.expect(b"half a line", "echo")
os.kill(t.pid, signal.SIGTERM)
t.leave(14, "SIGTERM at the prompt")
