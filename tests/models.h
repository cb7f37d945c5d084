/* Where tests find the real models. A missing file skips the test, unless PIPEDEC_REQUIRE_MODELS is set. */
#ifndef PD_TESTS_MODELS_H
#define PD_TESTS_MODELS_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MODEL_SMALL  "smollm2-135m.gguf"
#define MODEL_TARGET "qwen2.5-coder-1.5b.gguf"
#define MODEL_DRAFT  "qwen2.5-coder-0.5b.gguf"

/* The path in a static buffer (good until the next call), or NULL if the file is absent. */
static inline const char *test_model(const char *file)
{
    static char path[4096];
    const char *dir = getenv("PIPEDEC_MODELS"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (dir)
        snprintf(path, sizeof path, "%s/%s", dir, file);
    else if (cache)
        snprintf(path, sizeof path, "%s/pipedec/models/%s", cache, file);
    else
        snprintf(path, sizeof path, "%s/.cache/pipedec/models/%s", home ? home : ".", file);
    if (access(path, R_OK) == 0)
        return path;
    fprintf(stderr, "%s: not there (./dev models fetches it)\n", path);
    if (getenv("PIPEDEC_REQUIRE_MODELS"))
        exit(1);
    return NULL;
}

#endif
