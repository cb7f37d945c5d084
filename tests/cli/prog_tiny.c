/* needs: gguf base */
/* prog_tiny ARCH FILE: a tiny random model of the architecture, for scripts. */
#include "gguf_build.h"

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    test_build_model(argv[1], NULL, argv[2]);
    return 0;
}
