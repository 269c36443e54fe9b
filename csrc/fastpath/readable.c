/* readable.c -- what a BufferedProtocol gets: received straight into its own buffer. The twin of
 * CoreTransport._readable in pyloop/transports.py.
 *
 *     PL_EV_READABLE -> get_buffer(-1) -> pl_conn_receive -> buffer_updated(count)
 *
 * The receive does not wait, so the GIL is kept, and with it the buffer where it is. */
#include "fastpath.h"

/* What the protocol raised ends the transport, unless it ends the program. 0 or -1. */
static int fail(const struct state *st, PyObject *transport, const char *what)
{
    if (PyErr_ExceptionMatches(PyExc_SystemExit) || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return -1;
    PyObject *args[] = {transport, exception_take(), PyUnicode_FromString(what)}, *got = NULL;
    if (args[1] && args[2])
        got = PyObject_VectorcallMethod(st->s_fatal_error, args, 3, NULL);
    Py_XDECREF(args[1]);
    Py_XDECREF(args[2]);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

/* The protocol's buffer, of at least a byte. TLS has one for all, and need not be asked. 0 or -1. */
static int ask_buffer(const struct state *st, PyObject *protocol, Py_buffer *room)
{
    PyObject *args[] = {protocol, st->any_size};
    PyObject *buffer = tls_is_ours(st, protocol)
                           ? PyObject_GetAttr(protocol, st->s_ssl_buffer_view)
                           : PyObject_VectorcallMethod(st->s_get_buffer, args, 2, NULL);
    int rc = buffer ? PyObject_GetBuffer(buffer, room, PyBUF_WRITABLE) : -1;
    Py_XDECREF(buffer); /* room has a reference of its own */
    if (rc == 0 && room->len == 0) {
        PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
        PyBuffer_Release(room);
        rc = -1;
    }
    return rc;
}

static int tell_updated(const struct state *st, PyObject *protocol, int64_t count)
{
    PyObject *args[] = {protocol, PyLong_FromLongLong(count)};
    PyObject *got = args[1] ? PyObject_VectorcallMethod(st->s_buffer_updated, args, 2, NULL) : NULL;
    Py_XDECREF(args[1]);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

/* One receive, in the transport's context. 0 and *count, which is 0 at end of stream and < 0 if there was nothing; or
 * -1. */
static int receive(struct endpoint *c, PyObject *protocol, int64_t *count)
{
    const struct state *st = c->st;
    Py_buffer room;
    *count = -1;
    if (ask_buffer(st, protocol, &room) < 0)
        return fail(st, (PyObject *)c, "Fatal error: protocol.get_buffer() call failed.");
    *count = st->api->conn_receive(c->core, c->id, room.buf, (size_t)room.len);
    int rc = 0;
    if (*count > 0 && tls_is_ours(st, protocol))
        rc = tls_received(st, protocol, room.buf, *count);
    PyBuffer_Release(&room);
    if (*count > 0 && rc == 0)
        rc = tell_updated(st, protocol, *count);
    if (rc < 0)
        return fail(st, (PyObject *)c, "Fatal error: protocol.buffer_updated() call failed.");
    return 0;
}

int deliver_readable(struct endpoint *c)
{
    const struct state *st = c->st;
    if (!c->call || c->call != st->feed_buffered || c->gate || !c->context || !c->target)
        return 0;
    int64_t count = -1;
    PyObject *context = Py_NewRef(c->context), *protocol = Py_NewRef(c->target);
    Py_INCREF(c);
    int rc = PyContext_Enter(context);
    if (rc == 0) {
        rc = receive(c, protocol, &count);
        if (PyContext_Exit(context) < 0)
            rc = -1;
    }
    if (rc == 0 && count == 0) {
        PyObject *got = PyObject_CallMethodNoArgs((PyObject *)c, st->s_received_eof);
        rc = got ? 0 : -1;
        Py_XDECREF(got);
    }
    Py_DECREF(c);
    Py_DECREF(protocol);
    Py_DECREF(context);
    return rc;
}
