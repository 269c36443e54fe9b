/* life.c -- a connection's beginning and end on the walk: accepted, end of stream, lost. The twins of Dispatch._open,
 * _eof and _lost in pyloop/dispatch.py, which do what is rarer: each says 0 for it. */
#include "fastpath.h"

#define GATE_LOST 8 /* LOST of pyloop/transports.py */

static int done(PyObject *got)
{
    Py_XDECREF(got);
    return got ? 1 : -1;
}

/* Who accepts for a group, borrowed. NULL: nobody does, or an exception is set. */
static PyObject *find_owner(const struct walk *w, int32_t group)
{
    PyObject *owners = PyObject_GetAttr((PyObject *)w, w->st->s_owners);
    PyObject *number = owners ? PyLong_FromLong(group) : NULL;
    PyObject *owner = number ? PyDict_GetItemWithError(owners, number) : NULL;
    Py_XDECREF(number);
    Py_XDECREF(owners); /* Dispatch keeps it */
    return owner;
}

static int deliver_open(const struct walk *w, const struct pl_event *e)
{
    PyObject *owner = find_owner(w, e->value);
    if (!owner)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *args[] = {Py_NewRef(owner), PyLong_FromUnsignedLongLong(e->id),
                        PyBytes_FromStringAndSize((const char *)e->data, e->end - e->data)};
    PyObject *got = args[1] && args[2]
                        ? PyObject_VectorcallMethod(w->st->s_accepted, args, 3, NULL)
                        : NULL;
    Py_DECREF(args[0]);
    Py_XDECREF(args[1]);
    Py_XDECREF(args[2]);
    return done(got);
}

static int deliver_eof(const struct walk *w, struct endpoint *c)
{
    if (c->gate)
        return 0;
    Py_INCREF(c);
    int rc = done(PyObject_CallMethodNoArgs((PyObject *)c, w->st->s_received_eof));
    Py_DECREF(c);
    return rc;
}

/* A transport that closes tells its protocol before the core says so. */
static int deliver_lost(const struct walk *w, uint32_t slot)
{
    struct endpoint *c = w->table[slot];
    if (!(c->gate & GATE_LOST) || !PyObject_TypeCheck((PyObject *)c, w->st->TransportBase))
        return 0;
    w->table[slot] = NULL;
    Py_DECREF(c);
    return 1;
}

int deliver_life(struct walk *w, const struct pl_event *e)
{
    if (e->kind == PL_EV_OPEN)
        return deliver_open(w, e);
    struct endpoint *c = e->slot < w->table_cap ? w->table[e->slot] : NULL;
    if (!c)
        return 0;
    switch (e->kind) {
    case PL_EV_EOF: return deliver_eof(w, c);
    case PL_EV_LOST: return deliver_lost(w, e->slot);
    default: return 0;
    }
}
