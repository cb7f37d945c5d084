/* needs: gguf base */
/* prog_unlike FROM TO SHARE: a copy of a model in which tokens have changed their numbers, by pairs of names of equal
 * length whose embeddings change places too, and of which SHARE percent are left: the others count as unused. */
#include "gguf/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned char *data;
static size_t size;

static void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(2);
}

static void read_all(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END))
        die(path);
    size = (size_t)ftell(f);
    data = malloc(size);
    rewind(f);
    if (!data || fread(data, 1, size, f) != size)
        die(path);
    fclose(f);
}

static void write_all(const char *path)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f))
        die(path);
}

static void swap(void *a, void *b, size_t n)
{
    char *x = a, *y = b;
    for (size_t i = 0; i < n; i++) {
        char c = x[i];
        x[i] = y[i];
        y[i] = c;
    }
}

/* Where the file has its list of types: an array (9) of i32 (5), its length, its elements. */
static unsigned char *types_of(void)
{
    static const char key[] = "tokenizer.ggml.token_type";
    unsigned char *at = memmem(data, size, key, sizeof key - 1);
    if (!at || memcmp(at + sizeof key - 1, "\x09\0\0\0\x05\0\0\0", 8) != 0)
        die("no types");
    return at + sizeof key - 1 + 16;
}

int main(int argc, char **argv)
{
    enum { APART = 1000, FIRST = 1000 };
    struct gguf *g;
    struct pd_error err = {0};
    const char *key = "tokenizer.ggml.tokens";
    if (argc != 4)
        return 2;
    read_all(argv[1]);
    if (gguf_open_memory(&g, data, size, &err))
        die(err.text);
    const size_t n = gguf_array_count(g, key, GGUF_KIND_STRING);
    const struct gguf_tensor *t = gguf_tensor(g, "token_embd.weight");
    if (!t || gguf_tensor(g, "output.weight"))
        die("a model whose head is its embedding is needed");
    char *rows = (char *)(data + ((const unsigned char *)t->data - data));
    const size_t row = t->bytes / (size_t)t->ne[1];
    unsigned char *types = types_of();
    for (size_t i = FIRST; i + APART < n; i++) {
        const size_t k = i + APART;
        struct gguf_str a = gguf_array_str(g, key, i), b = gguf_array_str(g, key, k);
        if (i / APART % 2 == 0 || a.size != b.size || memcmp(types + 4 * i, types + 4 * k, 4) != 0)
            continue;
        swap(data + ((const unsigned char *)a.data - data), data + ((const unsigned char *)b.data - data),
             a.size);
        swap(rows + i * row, rows + k * row, row);
    }
    const unsigned share = (unsigned)atoi(argv[3]);
    for (size_t i = FIRST; i < n; i++)
        if (i * 7919 % 100 >= share)
            types[4 * i] = 5;
    gguf_close(g);
    write_all(argv[2]);
    return 0;
}
