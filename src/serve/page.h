/* serve/page: the web page at "/", one file without outside resources (page.html), as bytes. */
#ifndef PD_SERVE_PAGE_H
#define PD_SERVE_PAGE_H

#include <stddef.h>

extern const unsigned char page_html[];
extern const size_t page_html_size;

#endif
