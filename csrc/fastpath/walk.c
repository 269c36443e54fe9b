/* walk.c -- Walk: hands each event of a batch to what it is for. The twin of pyloop/walk.py.
 *
 * A message goes straight to the handler, in its connection's context; all else goes to the methods of Dispatch, by
 * the event's kind. When SystemExit or KeyboardInterrupt leaves a handler, the next walk goes on behind it. */
#include "fastpath.h"

#include <stddef.h>
#include <structmember.h>

#define KINDS 32
#define SLOTS_MAX (1u << 30)

void walk_begin(struct walk *w, uint32_t count)
{
    w->count = w->events ? count : 0; /* it was not made for a core, or has ended */
    w->next = 0;
    w->unfinished = 1;
    w->taken += count;
}

/* ---- a message ---- */

static PyObject *call_handler(const struct endpoint *c, PyObject *data)
{
    const struct state *st = c->st;
    PyObject *args[] = {c->target, data};
    if (c->call == st->deliver)
        return PyObject_VectorcallMethod(st->s_message_received, args, 2, NULL);
    if (c->call == st->call_it)
        return PyObject_Vectorcall(args[0], args + 1, 1, NULL);
    return PyObject_Vectorcall(c->call, args, 2, NULL);
}

static bool goes_to_inbox(const struct endpoint *c)
{
    return c->call == c->st->inbox_push && (PyObject *)Py_TYPE(c->target) == c->st->inbox_type;
}

/* One message: 0, or -1 with what was raised. */
static int deliver_one(const struct endpoint *c, const struct pl_event *e)
{
    /* The handler may change both. */
    struct endpoint now = {.st = c->st, .call = Py_NewRef(c->call), .target = Py_NewRef(c->target)};
    PyObject *data = PyBytes_FromStringAndSize((const char *)e->data, e->end - e->data);
    int rc = -1;
    if (data && goes_to_inbox(&now)) {
        rc = inbox_push(now.target, data);
    } else if (data) {
        PyObject *got = call_handler(&now, data);
        rc = got ? 0 : -1;
        Py_XDECREF(got);
    }
    Py_XDECREF(data);
    Py_DECREF(now.target);
    Py_DECREF(now.call);
    return rc;
}

/* The next event, if it is a message for the same connection and nothing has changed for it. */
static const struct pl_event *next_alike(const struct walk *w, const struct endpoint *c,
                                         PyObject *context, uint32_t slot)
{
    const struct pl_event *e = w->next < w->count ? &w->events[w->next] : NULL;
    bool alike = e && e->kind == PL_EV_MESSAGE && e->slot == slot && slot < w->table_cap &&
                 w->table[slot] == c && !c->gate && c->context == context && c->call && c->target;
    return alike ? e : NULL;
}

/* A connection's messages stand together: its context is entered once for all of them. */
static int deliver_run(struct walk *w, const struct endpoint *c, const struct pl_event *e)
{
    PyObject *context = Py_NewRef(c->context);
    int rc = PyContext_Enter(context);
    if (rc == 0) {
        uint32_t slot = e->slot;
        while ((rc = deliver_one(c, e)) == 0 && (e = next_alike(w, c, context, slot)))
            w->next++;
        if (PyContext_Exit(context) < 0)
            rc = -1;
    }
    Py_DECREF(context);
    return rc;
}

int walk_fail(const struct state *st, PyObject *conn)
{
    if (PyErr_ExceptionMatches(PyExc_SystemExit) || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return -1;
    PyObject *exc = exception_take();
    PyObject *got = exc ? PyObject_CallMethodOneArg(conn, st->s_fail, exc) : NULL;
    Py_XDECREF(exc);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

static int deliver_message(struct walk *w, const struct pl_event *e)
{
    struct endpoint *c = e->slot < w->table_cap ? w->table[e->slot] : NULL;
    PyObject *conn = (PyObject *)c;
    if (!c || !c->call || !c->target || !c->context)
        return 0;
    Py_INCREF(conn);
    int rc;
    if (c->gate) {
        PyObject *got = PyObject_CallMethodOneArg((PyObject *)w, w->st->s_gated, conn);
        rc = got ? 0 : -1;
        Py_XDECREF(got);
    } else {
        rc = deliver_run(w, c, e);
    }
    if (rc < 0)
        rc = walk_fail(w->st, conn);
    Py_DECREF(conn);
    return rc;
}

/* ---- any event ---- */

static PyObject *address(const void *where) { return PyLong_FromVoidPtr((void *)(uintptr_t)where); }

static PyObject *describe(const struct pl_event *e)
{
    return Py_BuildValue("kkNN", (unsigned long)e->kind, (unsigned long)e->slot, address(e->data),
                         address(e->end));
}

static int deliver_other(struct walk *w, const struct pl_event *e)
{
    if (e->kind >= (size_t)PyList_GET_SIZE(w->others))
        return 0;
    PyObject *all = describe(e);
    if (!all)
        return -1;
    PyObject *call = Py_NewRef(PyList_GET_ITEM(w->others, e->kind));
    PyObject *got = PyObject_Vectorcall(call, &PyTuple_GET_ITEM(all, 1), 3, NULL);
    Py_DECREF(call);
    Py_DECREF(all);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

static int deliver_event(struct walk *w, const struct pl_event *e)
{
    if (e->kind == PL_EV_MESSAGE)
        return deliver_message(w, e);
    struct endpoint *c = e->slot < w->table_cap ? w->table[e->slot] : NULL;
    if (e->kind == PL_EV_READABLE && c)
        return deliver_readable(c);
    int rc = e->kind == PL_EV_DATAGRAM      ? datagram_received(w, e)
             : e->kind == PL_EV_CIPHER && c ? cipher_received(c, e)
                                            : deliver_life(w, e);
    if (rc != 0)
        return rc < 0 ? -1 : 0;
    return e->kind == PL_EV_NONE ? 0 : deliver_other(w, e);
}

int walk_on(struct walk *w)
{
    while (w->next < w->count)
        if (deliver_event(w, &w->events[w->next++]) < 0)
            return -1;
    w->unfinished = 0;
    return 0;
}

/* ---- methods ---- */

static int walk_init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    struct walk *w = (struct walk *)self;
    PyObject *ptr, *nothing;
    struct pl_loop *core;
    if (!PyArg_ParseTuple(args, "OO:Walk", &ptr, &nothing))
        return -1;
    if (core_of(w->st, ptr, &core) < 0)
        return -1;
    PyObject *others = core ? PyList_New(KINDS) : NULL;
    if (!others) {
        if (!core)
            PyErr_SetString(PyExc_ValueError, "Walk: there is no core");
        return -1;
    }
    for (Py_ssize_t i = 0; i < KINDS; i++)
        PyList_SET_ITEM(others, i, Py_NewRef(nothing));
    Py_XSETREF(w->others, others);
    Py_XSETREF(w->datagrams, PyList_New(0));
    w->events = w->st->api->loop_events(core);
    return w->datagrams ? 0 : -1;
}

static PyObject *walk_begin_py(PyObject *self, PyObject *count)
{
    unsigned long number = PyLong_AsUnsignedLong(count);
    if (PyErr_Occurred())
        return NULL;
    struct walk *w = (struct walk *)self;
    if (number > PL_EVENTS_MAX || !w->events)
        return PyErr_Format(PyExc_ValueError, "a batch of %lu events", number);
    walk_begin(w, (uint32_t)number);
    Py_RETURN_NONE;
}

static PyObject *walk_walk(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return walk_on((struct walk *)self) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *walk_take(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    struct walk *w = (struct walk *)self;
    if (w->next < w->count)
        return describe(&w->events[w->next++]);
    w->unfinished = 0;
    Py_RETURN_NONE;
}

static PyObject *walk_get_left(PyObject *self, void *Py_UNUSED(closure))
{
    const struct walk *w = (struct walk *)self;
    return PyLong_FromUnsignedLong(w->count - w->next);
}

static PyObject *walk_index(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return PyLong_FromLong((long)((struct walk *)self)->next - 1);
}

/* ---- who is at a slot ---- */

static int reach(struct walk *w, uint32_t slot)
{
    if (slot < w->table_cap)
        return 0;
    if (slot >= SLOTS_MAX) {
        PyErr_Format(PyExc_ValueError, "slot %lu: there are no so many", (unsigned long)slot);
        return -1;
    }
    uint32_t cap = w->table_cap ? w->table_cap : 16;
    while (cap <= slot)
        cap *= 2;
    struct endpoint **table = PyMem_Realloc(w->table, cap * sizeof *table);
    if (!table) {
        PyErr_NoMemory();
        return -1;
    }
    memset(table + w->table_cap, 0, (cap - w->table_cap) * sizeof *table);
    w->table = table;
    w->table_cap = cap;
    return 0;
}

static PyObject *walk_put(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct walk *w = (struct walk *)self;
    const struct state *st = w->st;
    if (count != 2 || !(args[1] == Py_None || PyObject_TypeCheck(args[1], st->ConnectionBase) ||
                        PyObject_TypeCheck(args[1], st->TransportBase))) {
        PyErr_SetString(PyExc_TypeError,
                        "put: expected a slot, and a connection, a transport or None");
        return NULL;
    }
    unsigned long slot = PyLong_AsUnsignedLong(args[0]);
    if (PyErr_Occurred() || reach(w, slot > SLOTS_MAX ? SLOTS_MAX : (uint32_t)slot) < 0)
        return NULL;
    struct endpoint *old = w->table[slot];
    w->table[slot] = args[1] == Py_None ? NULL : (struct endpoint *)Py_NewRef(args[1]);
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

static PyObject *walk_at(PyObject *self, PyObject *slot)
{
    const struct walk *w = (struct walk *)self;
    unsigned long number = PyLong_AsUnsignedLong(slot);
    if (number == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    PyObject *conn = number < w->table_cap ? (PyObject *)w->table[number] : NULL;
    return Py_NewRef(conn ? conn : Py_None);
}

static PyObject *walk_end(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    struct walk *w = (struct walk *)self;
    PyObject *all = PyList_New(0);
    w->events = NULL;
    w->count = w->next = 0;
    for (uint32_t i = 0; all && i < w->table_cap; i++) {
        struct endpoint *c = w->table[i];
        w->table[i] = NULL;
        if (c && PyList_Append(all, (PyObject *)c) < 0)
            Py_CLEAR(all);
        Py_XDECREF(c);
    }
    return all;
}

/* ---- memory ---- */

static PyObject *walk_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                          PyObject *Py_UNUSED(kwargs))
{
    struct state *st = state_find(type);
    if (st && !st->api) {
        PyErr_SetString(PyExc_RuntimeError, "pyloop._fastpath is not connected to the core");
        return NULL;
    }
    struct walk *w = st ? (struct walk *)type->tp_alloc(type, 0) : NULL;
    if (w)
        w->st = st;
    return (PyObject *)w;
}

static int walk_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct walk *w = (struct walk *)self;
    Py_VISIT(Py_TYPE(self));
    for (uint32_t i = 0; i < w->table_cap; i++)
        Py_VISIT(w->table[i]);
    Py_VISIT(w->others);
    Py_VISIT(w->datagrams);
    return 0;
}

static int walk_clear(PyObject *self)
{
    struct walk *w = (struct walk *)self;
    struct endpoint **table = w->table;
    uint32_t cap = w->table_cap;
    w->table = NULL;
    w->table_cap = 0;
    for (uint32_t i = 0; i < cap; i++)
        Py_XDECREF(table[i]);
    PyMem_Free(table);
    Py_CLEAR(w->others);
    Py_CLEAR(w->datagrams);
    return 0;
}

static void walk_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    walk_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"begin", walk_begin_py, METH_O, "Take over a fresh batch of so many events."},
    {"walk", walk_walk, METH_NOARGS, "Deliver what is left of the batch."},
    {"take", walk_take, METH_NOARGS, "Step to the next event: (kind, slot, start, end), or None."},
    {"at", walk_at, METH_O, "Who is at a slot, or None."},
    {"put", FAST(walk_put), METH_FASTCALL, "Enter a connection or transport at a slot, or None."},
    {"end", walk_end, METH_NOARGS, "Let go of the batch and of the slots: all who are there."},
    {"_index", walk_index, METH_NOARGS, "The number of the event that the walk is at."},
    {0},
};

static PyGetSetDef fields[] = {
    {"left", walk_get_left, NULL, "How many events are behind the one that the walk is at.", NULL},
    {0},
};

static PyMemberDef members[] = {
    {"unfinished", T_BOOL, offsetof(struct walk, unfinished), 0,
     "Has the last walk not reached the end of its batch?"},
    {"taken", T_ULONGLONG, offsetof(struct walk, taken), 0,
     "Of the events that the core has counted, those that came here."},
    {"_others", T_OBJECT_EX, offsetof(struct walk, others), READONLY,
     "A list: what an event of a kind is delivered to."},
    {"datagrams", T_OBJECT_EX, offsetof(struct walk, datagrams), READONLY,
     "A list: the datagram transports, by the slots of their ids."},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The walk over the batches of one loop: see pyloop/walk.py."},
    {Py_tp_new, walk_new},
    {Py_tp_init, walk_init},
    {Py_tp_methods, methods},
    {Py_tp_getset, fields},
    {Py_tp_members, members},
    {Py_tp_traverse, walk_traverse},
    {Py_tp_clear, walk_clear},
    {Py_tp_dealloc, walk_dealloc},
    {0},
};

static PyType_Spec spec = {
    .name = "pyloop._fastpath.Walk",
    .basicsize = sizeof(struct walk),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int walk_setup(PyObject *module, struct state *st)
{
    st->Walk = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return st->Walk ? PyModule_AddType(module, st->Walk) : -1;
}
