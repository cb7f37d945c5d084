/* A file that shrinks while it is mapped: reading what is gone raises SIGBUS. The handler puts zeros in its place and
 * notes that, so that whoever computes goes on to the end of the batch and then throws the result away
 * (gguf_check). */
#include "gguf/gguf_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAPS_MAX = 1024 }; /* watched at once; further ones go without */

static struct map {
    atomic_bool taken, spoilt;
    atomic_uintptr_t begin, end; /* both 0 while not watched */
} maps[MAPS_MAX];
static struct sigaction before; /* what to do with a SIGBUS that is not about our maps */
static uintptr_t page_bytes;

int guard_add(const void *data, size_t size)
{
    for (int i = 0; i < MAPS_MAX; i++) {
        bool free = false;
        if (!atomic_compare_exchange_strong(&maps[i].taken, &free, true))
            continue;
        atomic_store(&maps[i].spoilt, false);
        atomic_store(&maps[i].begin, (uintptr_t)data);
        atomic_store(&maps[i].end, (uintptr_t)data + size);
        return i;
    }
    return -1;
}

void guard_remove(int id)
{
    if (id < 0)
        return;
    atomic_store(&maps[id].end, 0);
    atomic_store(&maps[id].begin, 0);
    atomic_store(&maps[id].taken, false);
}

bool guard_spoilt(int id)
{
    return id >= 0 && atomic_load(&maps[id].spoilt);
}

static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    uintptr_t at = (uintptr_t)info->si_addr & ~(page_bytes - 1);
    int saved = errno;
    for (int i = 0; i < MAPS_MAX; i++) {
        uintptr_t end = atomic_load(&maps[i].end);
        if (at < atomic_load(&maps[i].begin) || at >= end)
            continue;
        atomic_store(&maps[i].spoilt, true);
        void *zeros = mmap((void *)at, end - at, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (zeros == MAP_FAILED)
            break;
        errno = saved;
        return;
    }
    sigaction(SIGBUS, &before, NULL); /* the access is tried again, and goes the way it would have gone */
    errno = saved;
}

void gguf_guard(void)
{
    struct sigaction act = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_RESTART}, now;
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&act.sa_mask);
    if (sigaction(SIGBUS, NULL, &now) || now.sa_sigaction == on_bus) /* somebody may have replaced ours */
        return;
    before = now;
    sigaction(SIGBUS, &act, NULL);
}
