/* Lines of a conversation, from a terminal (with editing and history) or a pipe, and the signals that come meanwhile.
 * A signal handler only notes and writes a byte into a pipe, which is waited for together with the input: so no
 * signal is lost between a look and a wait, whichever thread it came to. */
#include "cli/cli.h"
#include "host/mpi.h"

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

enum { HISTORY_LINES = 1000 };

struct cli_lines {
    bool terminal;
    EditLine *edit; /* on a terminal only */
    History *history;
    char *history_path;
    mbstate_t partial; /* of a character whose bytes are still coming */
    bool more;         /* the prompt of a continued line */
    bool asked;        /* Ctrl-C came, and nothing was typed since */
    char *data;        /* piped input: [begin, end) is read and not given out */
    size_t begin, end, room;
    bool ended;
};

/* ---- signals ---- */

static int wake[2] = {-1, -1};
static struct pd_engine *volatile replying; /* an answer is under way */
static volatile sig_atomic_t interrupted, terminated, interrupt_ends;

static void on_signal(int n)
{
    const int saved = errno;
    const char byte = (char)n;
    if (n == SIGTERM || n == SIGHUP || (n == SIGINT && interrupt_ends))
        terminated = 1;
    if (n == SIGINT && replying && interrupted) { /* the first one was in vain */
        signal(n, SIG_DFL);
        raise(n);
    }
    if (n == SIGINT)
        interrupted = 1;
    if (replying && (interrupted || terminated))
        pd_engine_cancel(replying);
    ssize_t written = write(wake[1], &byte, 1); /* a full pipe wakes as well */
    (void)written;
    errno = saved;
}

static void catch_signals(bool terminal)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGCONT};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    interrupt_ends = !terminal;
    if (pipe2(wake, O_CLOEXEC | O_NONBLOCK) != 0)
        return;
    for (size_t i = 0; i < PD_COUNT(signals); i++) {
        if (signals[i] == SIGTERM && mpi_launched()) /* there it is the launcher's way to end the job */
            continue;
        if (!terminal && (signals[i] == SIGWINCH || signals[i] == SIGCONT))
            continue;
        sigaction(signals[i], &action, NULL);
    }
}

void cli_lines_reply(struct pd_engine *e)
{
    if (e)
        interrupted = 0;
    replying = e;
    if (e && terminated)
        pd_engine_cancel(e);
}

bool cli_lines_interrupted(void)
{
    return interrupted || terminated;
}

bool cli_lines_terminated(void)
{
    return terminated != 0;
}

/* Until there is input (true), or a signal that ends the wait for this line. */
static bool wait_input(struct cli_lines *l)
{
    for (;;) {
        struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = wake[0], .events = POLLIN}};
        if (terminated || (l->terminal && interrupted))
            return false;
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return true; /* read will say what is wrong */
        char byte;
        while (read(wake[0], &byte, 1) == 1) {
            if (byte == SIGWINCH && l->edit)
                el_resize(l->edit);
            if (byte == SIGCONT && l->edit) {
                el_set(l->edit, EL_PREP_TERM, 1);
                el_set(l->edit, EL_REFRESH);
            }
        }
        if (!terminated && !(l->terminal && interrupted) && fds[0].revents)
            return true;
    }
}

/* ---- on a terminal ---- */

static char *prompt_text(EditLine *edit)
{
    static char first[] = "> ", more[] = ". ";
    struct cli_lines *l = NULL;
    el_get(edit, EL_CLIENTDATA, &l);
    return l->more ? more : first;
}

/* The editor's next character. Its own reader would swallow the signal, or restart. */
static int next_char(EditLine *edit, wchar_t *out)
{
    struct cli_lines *l = NULL;
    el_get(edit, EL_CLIENTDATA, &l);
    for (;;) {
        char byte;
        if (!wait_input(l)) {
            errno = EINTR;
            return -1;
        }
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return (int)n;
        l->asked = false;
        size_t size = mbrtowc(out, &byte, 1, &l->partial);
        if (size == (size_t)-2)
            continue;
        if (size != (size_t)-1)
            return 1;
        memset(&l->partial, 0, sizeof l->partial); /* no character of this locale: left out */
    }
}

static void make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
}

static char *find_history_path(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    int n = state && *state == '/' ? asprintf(&path, "%s/pipedec/history", state)
            : home && *home        ? asprintf(&path, "%s/.local/state/pipedec/history", home)
                                   : -1;
    if (n < 0)
        return NULL;
    make_folders(path);
    return path;
}

static void open_editor(struct cli_lines *l)
{
    HistEvent event;
    l->edit = el_init("pipedec", stdin, stderr, stderr);
    l->history = history_init();
    if (!l->edit || !l->history)
        return;
    el_set(l->edit, EL_CLIENTDATA, l);
    el_set(l->edit, EL_PROMPT, prompt_text);
    el_set(l->edit, EL_EDITOR, "emacs");
    el_set(l->edit, EL_GETCFN, next_char);
    el_set(l->edit, EL_HIST, history, l->history);
    el_source(l->edit, NULL);
    history(l->history, &event, H_SETSIZE, HISTORY_LINES);
    history(l->history, &event, H_SETUNIQUE, 1);
    l->history_path = find_history_path();
    if (l->history_path)
        history(l->history, &event, H_LOAD, l->history_path);
}

/* After every line: whatever ends the program, nothing typed is lost. */
static void remember(struct cli_lines *l, const char *line)
{
    static bool warned;
    HistEvent event;
    history(l->history, &event, H_ENTER, line);
    if (!l->history_path || history(l->history, &event, H_SAVE, l->history_path) >= 0 || warned)
        return;
    warned = true;
    log_msg(LOG_WARN, "%s: the history could not be saved", l->history_path);
}

static enum cli_line read_edited(struct cli_lines *l, char **line, size_t *size)
{
    int n = 0;
    interrupted = 0; /* of the reply before */
    const char *text = el_gets(l->edit, &n);
    if (terminated || (interrupted && l->asked)) {
        fputc('\n', stderr);
        return terminated ? CLI_LINE_STOPPED : CLI_LINE_END;
    }
    if (interrupted) {
        interrupted = 0;
        l->asked = true;
        fputs("\n(Ctrl-C again, or Ctrl-D, leaves)\n", stderr);
        return CLI_LINE_CLEARED;
    }
    if (!text || n <= 0) {
        fputc('\n', stderr);
        return CLI_LINE_END;
    }
    if (n > 1 && !l->more)
        remember(l, text);
    *line = mem_strdup(text);
    *size = strcspn(*line, "\n");
    (*line)[*size] = 0;
    return CLI_LINE;
}

/* ---- from a pipe or a file ---- */

static bool fill(struct cli_lines *l)
{
    if (l->begin) {
        memmove(l->data, l->data + l->begin, l->end - l->begin);
        l->end -= l->begin;
        l->begin = 0;
    }
    if (l->end == l->room) {
        l->room = 2 * l->room + 4096;
        l->data = realloc(l->data, l->room);
        PD_ASSERT(l->data);
    }
    ssize_t n = read(STDIN_FILENO, l->data + l->end, l->room - l->end);
    if (n < 0)
        return errno == EINTR || errno == EAGAIN;
    l->ended = n == 0;
    l->end += (size_t)n;
    return true;
}

static enum cli_line read_piped(struct cli_lines *l, char **line, size_t *size)
{
    const char *end;
    size_t seen = 0;
    while (!(end = l->end > l->begin + seen
                       ? memchr(l->data + l->begin + seen, '\n', l->end - l->begin - seen)
                       : NULL) &&
           !l->ended) {
        seen = l->end - l->begin;
        if (!wait_input(l))
            return CLI_LINE_STOPPED;
        if (!fill(l))
            return CLI_LINE_FAILED;
    }
    if (terminated)
        return CLI_LINE_STOPPED;
    size_t n = (end ? (size_t)(end - l->data) : l->end) - l->begin;
    if (!end && n == 0)
        return CLI_LINE_END;
    *line = mem_new(n + 1, 1);
    memcpy(*line, l->data + l->begin, n);
    l->begin += n + (end != NULL);
    while (n > 0 && (*line)[n - 1] == '\r')
        (*line)[--n] = 0;
    *size = n;
    return CLI_LINE;
}

/* ---- both ---- */

struct cli_lines *cli_lines_open(void)
{
    struct cli_lines *l = mem_new(1, sizeof *l);
    l->terminal = isatty(STDIN_FILENO);
    catch_signals(l->terminal);
    if (l->terminal)
        open_editor(l);
    return l;
}

enum cli_line cli_lines_read(struct cli_lines *l, bool more, char **line, size_t *size)
{
    l->more = more;
    *line = NULL;
    *size = 0;
    return l->edit ? read_edited(l, line, size) : read_piped(l, line, size);
}

void cli_lines_close(struct cli_lines *l)
{
    if (l->history)
        history_end(l->history);
    if (l->edit)
        el_end(l->edit);
    free(l->history_path);
    free(l->data);
    free(l);
}
