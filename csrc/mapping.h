/* mapping.h -- what the files of the core do with a mapping that output refers to. See pyloop_map.h. */
#ifndef PYLOOP_MAPPING_H
#define PYLOOP_MAPPING_H

#include "pyloop.h"

int mapping_has(const struct pl_mapping *m, size_t start, size_t len); /* is it inside? */
void mapping_hold(struct pl_mapping *m); /* one reference more, and one piece more that is queued */
void mapping_drop(struct pl_mapping *m); /* both fewer; may unmap */

#endif
