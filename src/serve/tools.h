/* serve/tools: grammars of replies that call tools.
 *
 *     required, a name    the whole reply is calls: behind reasoning, if the model has that
 *     auto                anything, until the marker of a call has come; from there on calls, to the end
 *
 * A call is what calls.h reads: its family's marker, a name that there is and arguments by that tool's schema.
 *
 * Ownership: the text is the caller's, to be freed. Threading: none of its own.
 */
#ifndef PD_SERVE_TOOLS_H
#define PD_SERVE_TOOLS_H

#include "calls/calls.h"
#include "serve/api.h"

struct tools_form {
    enum calls_family family;
    bool reasoning; /* the model may reason first */
    bool reasons;   /* and does, from the prompt on */
};
/* What surrounds a call: the text in front of the first one (which a lazy grammar waits for), between two, behind the last. */
struct tools_marks {
    const char *marker, *begin, *between, *end;
    const char *arguments; /* the name of their field */
};
struct tools_marks tools_marks(enum calls_family family);
/* A JSON schema of one call: an object with name and arguments. malloc'ed. */
char *tools_schema(const struct api_request *r, enum calls_family family);
/* *out NULL: all is allowed (there are no tools, or the form of a call has no marker to wait for). PD_ERR_UNSUPPORTED and
 * PD_ERR_USAGE: a tool's parameters are nothing that a grammar can keep to. */
enum pd_status tools_grammar(char **out, const struct api_request *r, const struct tools_form *f,
                             struct pd_error *err);

#endif
