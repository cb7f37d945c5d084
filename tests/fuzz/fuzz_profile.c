/* needs: engine host compute profile base */
/* Any bytes as a device profile: a status or finite, non-negative durations at every width and stage count. */
#include "host/driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct profile p;
    struct pd_error err = {0};
    if (profile_parse(&p, "fuzz.ini", (const char *)data, size, &err)) {
        PD_ASSERT(err.status == PD_ERR_PROFILE && err.text[0]);
        return 0;
    }
    static const int counts[] = {1, 2, 7, 128};
    for (size_t c = 0; c < PD_COUNT(counts); c++) {
        struct profile fit = p;
        PD_ASSERT(profile_fit(&fit, counts[c], &err) == PD_OK);
        for (int i = 0; i < fit.n_stages; i++)
            for (int rows = 1; rows <= BATCH_ROWS; rows += 31)
                PD_ASSERT(curve_ns(&fit.stage[i], rows) >= 0);
        PD_ASSERT(curve_ns(&fit.draft, 1) >= 0 && profile_step_ns(&fit) >= 0);
    }
    return 0;
}
