/* datagram.c -- DatagramBase: what is hot in a datagram transport. The twin of pyloop/datagrams.py's, and of how
 * pyloop/datagram_calls.py delivers.
 *
 *     sendto -> pl_dgram_send -> the next flush
 *     PL_EV_DATAGRAM -> datagram_received(data, sender), in the transport's context
 *
 * An address met lately is in a dict of the AddressBook, in either direction; for any other, and for whatever is not
 * the steady state, the Python half is called. */
#include "fastpath.h"

#include <stddef.h>
#include <structmember.h>

#define OPEN 0 /* of the states in datagrams.py: what is received is delivered */

struct face {
    PyObject head;
    PyObject *extra; /* asyncio's BaseTransport, whose layout this continues */
    struct state *st;
    struct pl_loop *core; /* NULL when it is lost, or not yet there */
    PyObject *ptr;        /* the same as Python hands it to the core: a cdata */
    uint64_t id;
    int state;
    int unread; /* of what stands before a datagram, how much at its end tells nothing */
    PyObject *context, *protocol;
    PyObject *address, *to; /* where all go: as Python has it, and the kernel; None or NULL: not all to one */
    PyObject *packed;       /* a dict: address -> what the kernel calls it */
    PyObject *senders;      /* a dict: what stands before a datagram -> address */
};

static struct face *of(PyObject *self) { return (struct face *)self; }

static bool is_there(PyObject *field) { return field && field != Py_None; }

/* What a dict has for a key, a reference. NULL with nothing raised: nothing, or it is no key for a dict. */
static PyObject *look_up(PyObject *dict, PyObject *key)
{
    if (!dict || !PyDict_CheckExact(dict))
        return NULL;
    Py_INCREF(dict); /* a key may run code */
    PyObject *found = Py_XNewRef(PyDict_GetItemWithError(dict, key));
    Py_DECREF(dict);
    if (!found && PyErr_Occurred() &&
        (PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_KeyError)))
        PyErr_Clear();
    return found;
}

/* ---- sending ---- */

/* The Python method gets the same arguments. */
static PyObject *send_other(PyObject *self, PyObject *const *args, Py_ssize_t count,
                            PyObject *names)
{
    PyObject *method = PyObject_GetAttr(self, of(self)->st->s_send_other);
    PyObject *got = method ? PyObject_Vectorcall(method, args, (size_t)count, names) : NULL;
    Py_XDECREF(method);
    return got;
}

static PyObject *tell_sent(PyObject *self, int code)
{
    PyObject *number = PyLong_FromLong(code);
    PyObject *got =
        number ? PyObject_CallMethodOneArg(self, of(self)->st->s_sent, number) : NULL;
    Py_XDECREF(number);
    return got;
}

static PyObject *datagram_sendto(PyObject *self, PyObject *const *args, Py_ssize_t count,
                                 PyObject *names)
{
    const struct face *d = of(self);
    if (names || count < 1 || count > 2 || !PyBytes_CheckExact(args[0]))
        return send_other(self, args, count, names);
    PyObject *data = args[0], *addr = count == 2 ? args[1] : Py_None;
    if (addr != Py_None && is_there(d->address))
        return send_other(self, args, count, names);
    PyObject *to = is_there(d->to) ? Py_NewRef(d->to) : look_up(d->packed, addr);
    if (!to || !PyBytes_CheckExact(to)) {
        Py_XDECREF(to);
        return PyErr_Occurred() ? NULL : send_other(self, args, count, names);
    }
    int code = d->st->api->dgram_send(d->core, d->id, (const uint8_t *)PyBytes_AS_STRING(data),
                                      (size_t)PyBytes_GET_SIZE(data),
                                      (const uint8_t *)PyBytes_AS_STRING(to),
                                      (size_t)PyBytes_GET_SIZE(to));
    Py_DECREF(to);
    return code ? tell_sent(self, code) : Py_NewRef(Py_None);
}

/* ---- receiving ---- */

/* The transport at a slot, if it is open. Borrowed. */
static struct face *open_at(const struct walk *w, uint32_t slot)
{
    PyObject *all = w->datagrams;
    PyObject *self = all && slot < (size_t)PyList_GET_SIZE(all) ? PyList_GET_ITEM(all, slot) : NULL;
    if (!self || !PyObject_TypeCheck(self, w->st->DatagramBase) || of(self)->state != OPEN)
        return NULL;
    return of(self);
}

static PyObject *sender_of(struct face *d, const struct pl_event *e)
{
    const char *start = (const char *)e->data - PL_DATAGRAM_HEAD;
    PyObject *head = PyBytes_FromStringAndSize(start, PL_DATAGRAM_HEAD - d->unread);
    PyObject *sender = head ? look_up(d->senders, head) : NULL;
    if (head && !sender && !PyErr_Occurred())
        sender = PyObject_CallMethodOneArg((PyObject *)d, d->st->s_unpack, head);
    Py_XDECREF(head);
    return sender;
}

/* 0, or -1 with what was raised. */
static int deliver_one(struct face *d, const struct pl_event *e)
{
    PyObject *protocol = Py_NewRef(d->protocol ? d->protocol : Py_None); /* it may be replaced */
    PyObject *sender = sender_of(d, e), *got = NULL;
    PyObject *data =
        sender ? PyBytes_FromStringAndSize((const char *)e->data, e->end - e->data) : NULL;
    PyObject *args[] = {protocol, data, sender};
    if (data)
        got = PyObject_VectorcallMethod(d->st->s_datagram_received, args, 3, NULL);
    Py_XDECREF(got);
    Py_XDECREF(data);
    Py_XDECREF(sender);
    Py_DECREF(protocol);
    return got ? 0 : -1;
}

/* The next event, if it is a datagram for the same transport, which still takes them. */
static const struct pl_event *next_alike(const struct walk *w, const struct face *d,
                                         uint32_t slot)
{
    const struct pl_event *e = w->next < w->count ? &w->events[w->next] : NULL;
    bool alike = e && e->kind == PL_EV_DATAGRAM && e->slot == slot && open_at(w, slot) == d;
    return alike ? e : NULL;
}

/* A socket's datagrams stand together: the context is entered once for all of them. */
static int deliver_run(struct walk *w, struct face *d, const struct pl_event *e)
{
    PyObject *context = Py_NewRef(d->context);
    int rc = PyContext_Enter(context);
    if (rc == 0) {
        uint32_t slot = e->slot;
        while ((rc = deliver_one(d, e)) == 0 && (e = next_alike(w, d, slot)))
            w->next++;
        if (PyContext_Exit(context) < 0)
            rc = -1;
    }
    Py_DECREF(context);
    return rc;
}

int datagram_received(struct walk *w, const struct pl_event *e)
{
    struct face *d = open_at(w, e->slot);
    if (!d || !d->context)
        return 0;
    Py_INCREF(d);
    int rc = deliver_run(w, d, e);
    if (rc < 0)
        rc = walk_fail(w->st, (PyObject *)d);
    Py_DECREF(d);
    return rc < 0 ? -1 : 1;
}

/* ---- fields ---- */

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

#define PLACE(name) offsetof(struct face, name)

static PyMemberDef members[] = {
    {"_id", T_ULONGLONG, PLACE(id), 0, "Its number in the core."},
    {"_state", T_INT, PLACE(state), 0, "What becomes of what it receives."},
    {"_unread", T_INT, PLACE(unread), 0, "What need not be read before a datagram, in bytes."},
    {"_context", T_OBJECT, PLACE(context), 0, "In which the protocol is called."},
    {"_protocol", T_OBJECT, PLACE(protocol), 0, "Who gets what is received."},
    {"_address", T_OBJECT, PLACE(address), 0, "Where all datagrams go, or None."},
    {"_to", T_OBJECT, PLACE(to), 0, "The same as the kernel has it."},
    {"_packed", T_OBJECT, PLACE(packed), 0, "AddressBook.packed, of its family."},
    {"_senders", T_OBJECT, PLACE(senders), 0, "AddressBook.senders."},
    {0},
};

/* ---- memory ---- */

static PyObject *datagram_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                              PyObject *Py_UNUSED(kwargs))
{
    struct state *st = state_find(type);
    PyObject *self = st ? type->tp_alloc(type, 0) : NULL;
    if (self)
        of(self)->st = st;
    return self;
}

static int datagram_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct face *d = of(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(d->extra);
    Py_VISIT(d->ptr);
    Py_VISIT(d->context);
    Py_VISIT(d->protocol);
    Py_VISIT(d->address);
    Py_VISIT(d->to);
    Py_VISIT(d->packed);
    Py_VISIT(d->senders);
    return 0;
}

static int datagram_clear(PyObject *self)
{
    struct face *d = of(self);
    d->core = NULL;
    Py_CLEAR(d->extra);
    Py_CLEAR(d->ptr);
    Py_CLEAR(d->context);
    Py_CLEAR(d->protocol);
    Py_CLEAR(d->address);
    Py_CLEAR(d->to);
    Py_CLEAR(d->packed);
    Py_CLEAR(d->senders);
    return 0;
}

static void datagram_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    datagram_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- the type ---- */

PyMethodDef datagram_methods[] = {
    {"sendto", FAST(datagram_sendto), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("sendto($self, data, addr=None)\n--\n\n"
               "Queue one datagram; it leaves with the loop's next turn.")},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "What is hot in a datagram transport."},
    {Py_tp_methods, datagram_methods},
    {Py_tp_members, members},
    {Py_tp_getset, fields},
    {Py_tp_new, datagram_new},
    {Py_tp_traverse, datagram_traverse},
    {Py_tp_clear, datagram_clear},
    {Py_tp_dealloc, datagram_dealloc},
    {0},
};

static PyType_Spec spec = {
    .name = "pyloop._fastpath.DatagramBase",
    .basicsize = sizeof(struct face),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

/* asyncio's DatagramTransport, if it has the one field that struct face leaves room for. */
static PyObject *find_transport(void)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio.transports");
    PyObject *type = asyncio ? PyObject_GetAttrString(asyncio, "DatagramTransport") : NULL;
    Py_XDECREF(asyncio);
    if (type && ((PyTypeObject *)type)->tp_basicsize != offsetof(struct face, st)) {
        PyErr_SetString(PyExc_ImportError, "asyncio's DatagramTransport has not one field");
        Py_CLEAR(type);
    }
    return type;
}

int datagram_setup(PyObject *module, struct state *st)
{
    PyObject *transport = find_transport();
    if (!transport)
        return -1;
    st->DatagramBase = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, transport);
    Py_DECREF(transport);
    return st->DatagramBase ? PyModule_AddType(module, st->DatagramBase) : -1;
}
