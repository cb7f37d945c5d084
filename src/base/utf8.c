/* UTF-8 as it must be: no overlong forms, no surrogates, nothing above U+10FFFF. */
#include "base/base.h"

#include <string.h>

int utf8_next(const unsigned char *s, size_t size)
{
    if (size == 0)
        return -1;
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 0;
    int need = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    /* Only the second byte's range depends on the first. */
    unsigned low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    unsigned high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < need; i++) {
        if ((size_t)i >= size)
            return -1;
        if (s[i] < low || s[i] > high)
            return 0;
        low = 0x80;
        high = 0xBF;
    }
    return need;
}

bool utf8_valid(const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    for (size_t i = 0; i < size;) {
        int len = s[i] < 0x80 ? 1 : utf8_next(s + i, size - i);
        if (len <= 0)
            return false;
        i += (size_t)len;
    }
    return true;
}

/* Would it move the cursor, start an escape or turn the writing round? */
static bool is_control(uint32_t c)
{
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || (c >= 0x2028 && c <= 0x202E) ||
           (c >= 0x2066 && c <= 0x2069);
}

void utf8_clean(char *text)
{
    unsigned char *in = (unsigned char *)text, *out = in;
    size_t left = strlen(text);
    while (left) {
        int n = in[0] < 0x80 ? 1 : utf8_next(in, left);
        uint32_t c = in[0];
        if (n > 1) {
            c &= 0xFFu >> (n + 1);
            for (int i = 1; i < n; i++)
                c = c << 6 | (in[i] & 0x3F);
        }
        if (n <= 0 || is_control(c)) {
            n = n > 0 ? n : 1;
            *out++ = '?';
        } else {
            memmove(out, in, (size_t)n);
            out += n;
        }
        in += n;
        left -= (size_t)n;
    }
    *out = 0;
}
