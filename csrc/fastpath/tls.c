/* tls.c -- TLS on asyncio's transports, while nothing waits: the twin of what runs for every message in
 * pyloop/tls_protocol.py.
 *
 *     PL_EV_READABLE -> pl_conn_receive -> SSLObject -> data_received
 *     write -> SSLObject -> pl_conn_write
 *
 * The protocol is asyncio's, in Python, and its attributes are the truth: they are read here, and none is written.
 * Whenever one of them says that this is not the steady state, the Python methods do all of it. */
#include "fastpath.h"

bool tls_is_ours(const struct state *st, PyObject *protocol)
{
    return (PyObject *)Py_TYPE(protocol) == st->tls_protocol;
}

/* The instance's dict, which is asked at once for what only it has. */
static PyObject *fields_of(PyObject *protocol) { return PyObject_GenericGetDict(protocol, NULL); }

/* Borrowed; NULL, and nothing raised: it is not there. */
static PyObject *field(PyObject *fields, PyObject *name)
{
    return PyDict_GetItemWithError(fields, name); /* of a str: it cannot fail */
}

/* A reference; NULL with AttributeError. */
static PyObject *need(PyObject *fields, PyObject *name)
{
    PyObject *value = field(fields, name);
    if (!value)
        PyErr_SetObject(PyExc_AttributeError, name);
    return Py_XNewRef(value);
}

static bool is_empty(PyObject *fields, PyObject *name)
{
    PyObject *value = field(fields, name);
    Py_ssize_t size = value ? PyObject_Size(value) : -1;
    if (size < 0)
        PyErr_Clear();
    return size == 0;
}

/* What is an Exception ends the transport, as tls_protocol.py does it. 0; -1: it did not, and is still set. */
static int fail(const struct state *st, PyObject *protocol)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyObject *args[] = {protocol, exception_take(), st->tls_failed};
    PyObject *got = args[1] ? PyObject_VectorcallMethod(st->s_fatal_error, args, 3, NULL) : NULL;
    Py_XDECREF(args[1]);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

/* ---- in ---- */

/* All plaintext that is there, or NULL; *ended: the peer has said that it ends. */
static PyObject *read_all(const struct state *st, PyObject *tls, PyObject *incoming,
                          Py_ssize_t room, bool *ended)
{
    PyObject *all = NULL, *plain;
    int rc;
    *ended = false;
    while ((rc = records_read(st, tls, room, &plain)) > 0) {
        *ended = PyBytes_GET_SIZE(plain) == 0;
        bool more = !*ended && records_go_on(st, incoming, &room, plain);
        if (!all)
            all = plain;
        else
            PyBytes_ConcatAndDel(&all, plain);
        if (!all || !more)
            return all;
    }
    if (rc == 0)
        return all ? all : Py_NewRef(st->empty_bytes);
    Py_XDECREF(all);
    return NULL;
}

static int deliver(const struct state *st, PyObject *fields, PyObject *plain)
{
    PyObject *app = need(fields, st->s_app_protocol), *args[] = {app, plain};
    PyObject *got = app ? PyObject_VectorcallMethod(st->s_data_received, args, 2, NULL) : NULL;
    Py_XDECREF(app);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

static int call(PyObject *protocol, PyObject *method)
{
    PyObject *got = PyObject_CallMethodNoArgs(protocol, method);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

/* Does something wait that has to be minded when it was read? */
static bool is_unsettled(const struct state *st, PyObject *fields)
{
    PyObject *outgoing = field(fields, st->s_outgoing);
    return !outgoing || records_left(st, outgoing) || !is_empty(fields, st->s_write_backlog) ||
           field(fields, st->s_app_writing_paused) != Py_False ||
           field(fields, st->s_ssl_reading_paused) != Py_False;
}

static int receive(const struct state *st, PyObject *protocol, PyObject *fields,
                   PyObject *incoming, Py_ssize_t came)
{
    bool ended;
    PyObject *tls = need(fields, st->s_sslobj);
    PyObject *plain = tls ? read_all(st, tls, incoming, records_room(came), &ended) : NULL;
    int rc = plain ? 0 : -1;
    Py_XDECREF(tls);
    if (plain && PyBytes_GET_SIZE(plain))
        rc = deliver(st, fields, plain);
    Py_XDECREF(plain);
    if (rc == 0 && ended)
        rc = call(protocol, st->s_end_reading);
    return rc == 0 && is_unsettled(st, fields) ? call(protocol, st->s_settle) : rc;
}

int tls_received(const struct state *st, PyObject *protocol, const void *data, int64_t count)
{
    PyObject *fields = fields_of(protocol);
    if (!fields)
        return -1;
    PyObject *incoming = need(fields, st->s_incoming);
    int rc = incoming ? 0 : -1;
    if (incoming && field(fields, st->s_state) == st->tls_wrapped &&
        field(fields, st->s_app_reading_paused) == Py_False &&
        field(fields, st->s_app_protocol_is_buffer) == Py_False) {
        rc = records_take(st, incoming, data, (Py_ssize_t)count);
        if (rc == 0 && receive(st, protocol, fields, incoming, (Py_ssize_t)count) < 0)
            rc = fail(st, protocol);
        rc = rc < 0 ? -1 : 1;
    }
    Py_XDECREF(incoming);
    Py_DECREF(fields);
    return rc;
}

/* ---- out ---- */

/* The transport under it, if nothing is queued there and nobody is paused, nor would be; else NULL. Borrowed. */
static PyObject *wire_of(const struct state *st, PyObject *fields)
{
    PyObject *mark = field(fields, st->s_outgoing_high_water);
    bool free = mark && PyLong_Check(mark) && PyObject_IsTrue(mark) &&
                field(fields, st->s_state) == st->tls_wrapped &&
                is_empty(fields, st->s_write_backlog) &&
                field(fields, st->s_ssl_writing_paused) == Py_False &&
                field(fields, st->s_app_writing_paused) == Py_False;
    PyObject *wire = free ? field(fields, st->s_transport) : NULL;
    return wire && PyObject_TypeCheck(wire, st->TransportBase) ? wire : NULL;
}

/* Let the Python method write what the record had no room for, or all. */
static int write_rest(const struct state *st, PyObject *protocol, PyObject *data, Py_ssize_t from)
{
    PyObject *rest = PySequence_GetSlice(data, from, PyBytes_GET_SIZE(data));
    PyObject *all = rest ? PyTuple_Pack(1, rest) : NULL;
    PyObject *got = all ? PyObject_CallMethodOneArg(protocol, st->s_write_appdata, all) : NULL;
    Py_XDECREF(all);
    Py_XDECREF(rest);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

static int write_record(const struct state *st, PyObject *protocol, PyObject *fields,
                        PyObject *wire, PyObject *data)
{
    PyObject *tls = need(fields, st->s_sslobj);
    PyObject *outgoing = tls ? need(fields, st->s_outgoing) : NULL;
    Py_ssize_t count = 0;
    Py_INCREF(wire);
    PyObject *cipher = outgoing ? records_make(st, tls, outgoing, data, &count) : NULL;
    PyObject *got = cipher ? transport_write_data(wire, cipher) : NULL;
    Py_XDECREF(cipher);
    Py_DECREF(wire);
    Py_XDECREF(outgoing);
    Py_XDECREF(tls);
    if (!got && PyErr_ExceptionMatches(st->tls_again)) {
        PyErr_Clear();
        return write_rest(st, protocol, data, 0);
    }
    if (!got)
        return fail(st, protocol);
    Py_DECREF(got);
    return count < PyBytes_GET_SIZE(data) ? write_rest(st, protocol, data, count) : 0;
}

/* 1: written, or the transport has failed; 0: let the Python method do it; -1. */
static int write_at_once(const struct state *st, PyObject *self, PyObject *data)
{
    if (!PyBytes_CheckExact(data) || !PyBytes_GET_SIZE(data) ||
        PyBytes_GET_SIZE(data) > RECORD_BYTES)
        return 0;
    PyObject *protocol = PyObject_GetAttr(self, st->s_ssl_protocol);
    PyObject *fields = protocol && tls_is_ours(st, protocol) ? fields_of(protocol) : NULL;
    int rc = PyErr_Occurred() ? -1 : 0;
    PyObject *wire = fields ? wire_of(st, fields) : NULL;
    if (wire)
        rc = write_record(st, protocol, fields, wire, data) < 0 ? -1 : 1;
    Py_XDECREF(fields);
    Py_XDECREF(protocol);
    return rc;
}

static PyObject *tls_write(PyObject *self, PyTypeObject *cls, PyObject *const *args,
                           Py_ssize_t given, PyObject *names)
{
    const struct state *st = PyType_GetModuleState(cls);
    PyObject *data = written_data(args, given, names);
    int rc = data ? write_at_once(st, self, data) : -1;
    if (rc == 0)
        return PyObject_CallMethodOneArg(self, st->s_write_other, data);
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- the type ---- */

static PyMethodDef methods[] = {
    {"write", (PyCFunction)(void (*)(void))tls_write,
     METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("write($self, data)\n--\n\nEncrypt bytes as they are now, and queue them.")},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "What is hot in a transport of TLS. It has no fields: they are asyncio's."},
    {Py_tp_methods, methods},
    {0},
};

static PyType_Spec spec = {
    .name = "pyloop._fastpath.TLSTransportBase",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int tls_setup(PyObject *module, struct state *st)
{
    st->TLSTransportBase = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return st->TLSTransportBase ? PyModule_AddType(module, st->TLSTransportBase) : -1;
}
