/* needs: serve engine host compute profile wire base */
/* Any bytes as messages between front and engine, and as a journal: refused, or valid, and then written as they were. */
#include "serve/journal.h"

#include <stdlib.h>
#include <string.h>

static void nothing(void *user, const struct message *m)
{
    struct bytes out = {0};
    (void)user;
    protocol_write(&out, m);
    bytes_free(&out);
}

/* Sums that are right, so that the fields behind them are reached. */
static void mend(uint8_t *data, size_t size)
{
    for (size_t at = 8; at + 14 <= size;) {
        size_t n = bytes_get32(data + at + 4);
        if (n > size - at - 14)
            return;
        bytes_set32(data + at + 8, bytes_crc(0, data + at + 12, n + 2));
        at += 14 + n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct message m;
    struct arena arena = {0};
    struct pd_error err = {0};
    size_t used;
    if (protocol_get(&m, &arena, data, size, &used, &err))
        PD_ASSERT(err.text[0]);
    arena_free(&arena);
    if (size > 1 && !protocol_read(&m, data[0], &arena, data + 1, size - 1, &err)) {
        struct bytes out = {0};
        protocol_write(&out, &m);
        PD_ASSERT(out.size == size - 1 && !memcmp(out.data, data + 1, out.size));
        bytes_free(&out);
    }
    arena_free(&arena);
    struct journal_read r = journal_parse(data, size, nothing, NULL);
    PD_ASSERT(r.used <= size);
    uint8_t *copy = mem_new(size + 1, 1);
    memcpy(copy, data, size);
    mend(copy, size);
    journal_parse(copy, size, nothing, NULL);
    free(copy);
    return 0;
}
