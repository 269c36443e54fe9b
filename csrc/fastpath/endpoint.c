/* endpoint.c -- ConnectionBase and TransportBase: the fields that the walk reads and the sends that handlers call.
 *
 * pyloop.Connection and the asyncio transports inherit from them, and from pyloop/endpoint.py's twins without the
 * fast path: these have no more than what is hot, and call their subclass for whatever is not simply queued. */
#include "fastpath.h"

#include <stddef.h>
#include <structmember.h>

static struct endpoint *of(PyObject *self) { return (struct endpoint *)self; }

#define LARGE_PIECE_BYTES 1024 /* on average */

/* ---- sending ---- */

static PyObject *tell(PyObject *self, PyObject *method, int code, PyObject *what)
{
    PyObject *args[] = {self, PyLong_FromLong(code), what};
    PyObject *got = args[1] ? PyObject_VectorcallMethod(method, args, 3, NULL) : NULL;
    Py_XDECREF(args[1]);
    return got;
}

static PyObject *send_bytes(PyObject *self, PyObject *message, bool framed)
{
    const struct endpoint *c = of(self);
    const struct pl_api *api = c->st->api;
    bool is_bytes = PyBytes_CheckExact(message), is_tls = cipher_is_ours(c);
    int encrypted = is_bytes && is_tls ? cipher_send(of(self), message, framed) : 0;
    if (encrypted)
        return encrypted < 0 ? NULL : Py_NewRef(Py_None);
    if (!is_bytes || is_tls) {
        PyObject *args[] = {self, message, framed ? Py_True : Py_False};
        return PyObject_VectorcallMethod(c->st->s_send_other, args, 3, NULL);
    }
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(message);
    Py_ssize_t len = PyBytes_GET_SIZE(message);
    int code = (framed ? api->conn_send : api->conn_write)(c->core, c->id, data, (size_t)len);
    if (code == 0)
        Py_RETURN_NONE;
    PyObject *size = PyLong_FromSsize_t(len);
    PyObject *got = size ? tell(self, c->st->s_sent, code, size) : NULL;
    Py_XDECREF(size);
    return got;
}

static PyObject *connection_send(PyObject *self, PyObject *message)
{
    return send_bytes(self, message, true);
}

static PyObject *connection_write(PyObject *self, PyObject *data)
{
    return send_bytes(self, data, false);
}

PyObject *written_data(PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    if (count + named == 1 &&
        (!named || PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "data") == 0))
        return args[0];
    PyErr_SetString(PyExc_TypeError, "write: expected one argument, data");
    return NULL;
}

PyObject *transport_write_data(PyObject *self, PyObject *data)
{
    const struct endpoint *c = of(self);
    const struct pl_api *api = c->st->api;
    Py_buffer span;
    int code;
    if (PyBytes_CheckExact(data)) {
        const uint8_t *bytes = (const uint8_t *)PyBytes_AS_STRING(data);
        code = api->conn_write(c->core, c->write_id, bytes, (size_t)PyBytes_GET_SIZE(data));
    } else if (PyByteArray_Check(data) || PyMemoryView_Check(data) || PyBytes_Check(data)) {
        if (PyObject_GetBuffer(data, &span, PyBUF_SIMPLE) < 0) {
            PyErr_Clear(); /* not contiguous: copied first */
            return PyObject_CallMethodOneArg(self, c->st->s_write_other, data);
        }
        code = api->conn_write(c->core, c->write_id, span.buf, (size_t)span.len);
        PyBuffer_Release(&span);
    } else {
        return PyObject_CallMethodOneArg(self, c->st->s_write_other, data);
    }
    return code ? tell(self, c->st->s_written, code, data) : Py_NewRef(Py_None);
}

static PyObject *transport_write(PyObject *self, PyObject *const *args, Py_ssize_t given,
                                 PyObject *names)
{
    PyObject *data = written_data(args, given, names);
    return data ? transport_write_data(self, data) : NULL;
}

/* Of pieces that are bytes, how many bytes there are; -1: some are something else, and join() says what it takes. */
static Py_ssize_t total_of(PyObject *pieces)
{
    Py_ssize_t total = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(pieces); i++) {
        PyObject *piece = PyTuple_GET_ITEM(pieces, i);
        if (!PyBytes_CheckExact(piece))
            return -1;
        total += PyBytes_GET_SIZE(piece);
    }
    return total;
}

static PyObject *write_each(PyObject *self, PyObject *pieces)
{
    PyObject *got = Py_NewRef(Py_None);
    for (Py_ssize_t i = 0; got && i < PyTuple_GET_SIZE(pieces); i++) {
        Py_DECREF(got);
        got = transport_write_data(self, PyTuple_GET_ITEM(pieces, i));
    }
    return got;
}

/* Small pieces are joined, which costs less than a call of the core for each; large ones are not copied once more. */
static PyObject *transport_writelines(PyObject *self, PyObject *lines)
{
    PyObject *pieces = PySequence_Tuple(lines), *got = NULL; /* a list may change on the way */
    if (!pieces)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(pieces);
    if (count && total_of(pieces) >= LARGE_PIECE_BYTES * count) {
        got = write_each(self, pieces);
    } else {
        const struct state *st = of(self)->st;
        PyObject *all = PyObject_CallMethodOneArg(st->empty_bytes, st->s_join, pieces);
        got = all ? transport_write_data(self, all) : NULL;
        Py_XDECREF(all);
    }
    Py_DECREF(pieces);
    return got;
}

/* ---- awaiting ---- */

static PyObject *connection_receive(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return awaiting_new(of(self)->st, self, AWAIT_MESSAGE);
}

static PyObject *connection_drain(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return awaiting_new(of(self)->st, self, AWAIT_ROOM);
}

static PyObject *connection_next(PyObject *self)
{
    return awaiting_new(of(self)->st, self, AWAIT_NEXT);
}

/* ---- fields ---- */

int core_of(struct state *st, PyObject *ptr, struct pl_loop **core)
{
    *core = NULL;
    if (ptr == st->null)
        return 0;
    if (ptr != st->loop_seen) {
        PyObject *address = st->address_of ? PyObject_CallOneArg(st->address_of, ptr) : NULL;
        unsigned long long number = address ? PyLong_AsUnsignedLongLong(address) : 0;
        Py_XDECREF(address);
        if (!address || PyErr_Occurred())
            return -1;
        st->core_seen = (struct pl_loop *)(uintptr_t)number;
        Py_XSETREF(st->loop_seen, Py_NewRef(ptr)); /* so that no other object gets its address */
    }
    *core = st->core_seen;
    return 0;
}

PyObject *core_ptr(const struct state *st, PyObject *ptr)
{
    ptr = ptr ? ptr : st->null;
    return Py_NewRef(ptr ? ptr : Py_None);
}

int core_set(struct state *st, PyObject *ptr, PyObject **place, struct pl_loop **core)
{
    if (!ptr || !st->null) {
        PyErr_SetString(PyExc_AttributeError, "_ptr: cannot be deleted, nor set before use_core()");
        return -1;
    }
    if (core_of(st, ptr, core) < 0)
        return -1;
    Py_XSETREF(*place, Py_NewRef(ptr));
    return 0;
}

static PyObject *get_ptr(PyObject *self, void *Py_UNUSED(closure))
{
    return core_ptr(of(self)->st, of(self)->ptr);
}

static int put_ptr(PyObject *self, PyObject *ptr, void *Py_UNUSED(closure))
{
    return core_set(of(self)->st, ptr, &of(self)->ptr, &of(self)->core);
}

static PyGetSetDef fields[] = {
    {"_ptr", get_ptr, put_ptr, "The loop, as the core wants it; ffi.NULL: it has let go.", NULL},
    {0},
};

#define PLACE(name) offsetof(struct endpoint, name)
#define COMMON                                                                                     \
    {"_id", T_ULONGLONG, PLACE(id), 0, "Its number in the core."},                                 \
        {"_gate", T_INT, PLACE(gate), 0, "Why messages are not delivered now: bits of inbox.py."}, \
        {"_context", T_OBJECT, PLACE(context), 0, "In which its callbacks run."},                  \
        {"_call", T_OBJECT, PLACE(call), 0, "What gets a message: _call(_target, message)."},      \
        {"_target", T_OBJECT, PLACE(target), 0, "See _call."},                                     \
        {0}

static PyMemberDef connection_members[] = {
    {"state", T_OBJECT, PLACE(first[0]), 0, "Whatever the handler wants to keep."},
    {"_closed", T_OBJECT, PLACE(first[1]), 0, "Set at the end; None while nobody waits for it."},
    {"_exc", T_OBJECT, PLACE(first[2]), 0, "Why it was lost, or None."},
    {"_owner", T_OBJECT, PLACE(first[3]), 0, "See protocol.Owner."},
    {"_peer", T_OBJECT, PLACE(first[4]), 0, "The peer's address, decoded or not."},
    {"_writable", T_OBJECT, PLACE(writable), 0, "Set when output is under low water; else None."},
    COMMON,
};

static PyMemberDef transport_members[] = {
    {"_write_id", T_ULONGLONG, PLACE(write_id), 0, "As _id, or no conn's: not to be written to."},
    COMMON,
};

/* ---- memory ---- */

static PyObject *endpoint_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                              PyObject *Py_UNUSED(kwargs))
{
    struct state *st = state_find(type);
    PyObject *self = st ? type->tp_alloc(type, 0) : NULL;
    if (self)
        of(self)->st = st;
    return self;
}

static int endpoint_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct endpoint *c = of(self);
    Py_VISIT(Py_TYPE(self));
    for (int i = 0; i < ENDPOINT_FIRST; i++)
        Py_VISIT(c->first[i]);
    Py_VISIT(c->ptr);
    Py_VISIT(c->context);
    Py_VISIT(c->call);
    Py_VISIT(c->target);
    Py_VISIT(c->writable);
    return 0;
}

static int endpoint_clear(PyObject *self)
{
    struct endpoint *c = of(self);
    c->core = NULL;
    for (int i = 0; i < ENDPOINT_FIRST; i++)
        Py_CLEAR(c->first[i]);
    Py_CLEAR(c->ptr);
    Py_CLEAR(c->context);
    Py_CLEAR(c->call);
    Py_CLEAR(c->target);
    Py_CLEAR(c->writable);
    return 0;
}

static void endpoint_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    endpoint_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- the types ---- */

PyMethodDef connection_methods[] = {
    {"send", connection_send, METH_O,
     PyDoc_STR("send($self, message, /)\n--\n\n"
               "Queue one message, framed; it leaves with the loop's next turn.")},
    {"write", connection_write, METH_O,
     PyDoc_STR("write($self, data, /)\n--\n\nQueue bytes as they are, without framing.")},
    {"receive", connection_receive, METH_NOARGS,
     PyDoc_STR("receive($self, /)\n--\n\n"
               "Wait for the next message; None at the peer's end of stream.")},
    {"drain", connection_drain, METH_NOARGS,
     PyDoc_STR("drain($self, /)\n--\n\n"
               "Wait until no more than 16 KiB are queued, if more than 64 KiB were.")},
    {0},
};

PyMethodDef transport_methods[] = {
    {"write", FAST(transport_write), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("write($self, data)\n--\n\n"
               "Queue bytes as they are now; they leave with the loop's next turn.")},
    {"writelines", transport_writelines, METH_O,
     PyDoc_STR("writelines($self, lines, /)\n--\n\nQueue the bytes of all of them.")},
    {0},
};

#define MEMORY                               \
    {Py_tp_new, endpoint_new},               \
        {Py_tp_getset, fields},              \
        {Py_tp_traverse, endpoint_traverse}, \
        {Py_tp_clear, endpoint_clear},       \
        {Py_tp_dealloc, endpoint_dealloc},   \
        {0}

static PyType_Slot connection_slots[] = {
    {Py_tp_doc, "What is hot in a pyloop.Connection."},
    {Py_tp_methods, connection_methods},
    {Py_tp_members, connection_members},
    {Py_am_aiter, PyObject_SelfIter},
    {Py_am_anext, connection_next},
    MEMORY,
};

static PyType_Slot transport_slots[] = {
    {Py_tp_doc, "What is hot in a transport."},
    {Py_tp_methods, transport_methods},
    {Py_tp_members, transport_members},
    MEMORY,
};

static PyTypeObject *make(PyObject *module, const char *name, PyType_Slot *slots, PyObject *base)
{
    PyType_Spec spec = {
        .name = name,
        .basicsize = sizeof(struct endpoint),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
        .slots = slots,
    };
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, base);
    if (type && PyModule_AddType(module, (PyTypeObject *)type) < 0)
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

/* asyncio's transports with flow control, if they have as many fields as struct endpoint leaves room for. */
static PyObject *find_transport(void)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio.transports");
    PyObject *type = asyncio ? PyObject_GetAttrString(asyncio, "_FlowControlMixin") : NULL;
    Py_XDECREF(asyncio);
    if (type && ((PyTypeObject *)type)->tp_basicsize != offsetof(struct endpoint, st)) {
        PyErr_SetString(PyExc_ImportError, "asyncio's _FlowControlMixin has not five fields");
        Py_CLEAR(type);
    }
    return type;
}

int endpoint_setup(PyObject *module, struct state *st)
{
    PyObject *transport = find_transport();
    if (!transport)
        return -1;
    st->ConnectionBase = make(module, "pyloop._fastpath.ConnectionBase", connection_slots, NULL);
    st->TransportBase = make(module, "pyloop._fastpath.TransportBase", transport_slots, transport);
    Py_DECREF(transport);
    return st->ConnectionBase && st->TransportBase ? 0 : -1;
}
