/* frame.h -- framing rules: where does the first message in these bytes end?
 *
 * Pure functions over bytes; nothing is consumed here. Three answers, as h11 gives them: a message,
 * "need more", an error. pl_framing_check and pl_framing_wrap of pyloop.h are defined in frame.c.
 */
#ifndef PYLOOP_FRAME_H
#define PYLOOP_FRAME_H

#include "pyloop.h"

struct cut {
    size_t head;  /* prefix bytes before the message */
    size_t len;   /* bytes of the message */
    size_t total; /* bytes on the wire: prefix, message, terminator. When more is needed: the
                     least number of bytes with which it can succeed (a hint for receiving) */
};

/* Look for the first message in p[0..n). `*scanned` (0 for fresh bytes) remembers how far the search
 * for a terminator went; pass it back with the same bytes and more. It is 0 again after a message.
 * 1: *cut is set. 0: more bytes are needed. PL_E_TOO_LONG, PL_E_MALFORMED: decided as soon as the bytes
 * there tell, for prefixes before the body has come. PL_RAW gives all n bytes (0 when n is 0). */
int frame_next(const struct pl_framing *f, const uint8_t *p, size_t n, size_t *scanned,
               struct cut *cut);

/* What p[0..n), in which frame_next found no message, means at end of stream. 1: the unterminated last
 * line of PL_LINES (a trailing \r is kept: no \n followed it, and so it counts: PL_E_TOO_LONG); 0: n is 0;
 * PL_E_INCOMPLETE. */
int frame_finish(const struct pl_framing *f, const uint8_t *p, size_t n, struct cut *cut);

#endif
