/* serve/page: the files of the web page (src/serve/page/), as bytes in the program: index.html at "/", the others at
 * "/page/NAME". None of them needs anything from elsewhere. */
#ifndef PD_SERVE_PAGE_H
#define PD_SERVE_PAGE_H

#include <stddef.h>

struct page_file {
    const char *name, *type; /* type: as in Content-Type */
    const char *etag;        /* quoted, of the contents */
    const unsigned char *data;
    size_t size;
};
extern const struct page_file page_files[]; /* [page_n_files] */
extern const size_t page_n_files;

#endif
