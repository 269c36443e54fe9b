/* records.c -- TLS records, as all take them who speak TLS here: the twin of pyloop/records.py.
 *
 * An ssl.SSLObject and its two ssl.MemoryBIO are called by their public names. No read is tried that would find
 * nothing: each costs an exception. */
#include "fastpath.h"

/* What is no longer is copied before the BIO copies it. A view would be cheaper for more, but it can have the collector
 * run: not where it lies in the arena of a batch, which never gives one conn more. */
#define COPIED_BYTES (64 * 1024)

int records_take(const struct state *st, PyObject *incoming, const void *data, Py_ssize_t len)
{
    PyObject *cipher = len <= COPIED_BYTES
                           ? PyBytes_FromStringAndSize(data, len)
                           : PyMemoryView_FromMemory((char *)(uintptr_t)data, len, PyBUF_READ);
    PyObject *args[] = {incoming, cipher};
    PyObject *got = cipher ? PyObject_VectorcallMethod(st->s_write, args, 2, NULL) : NULL;
    Py_XDECREF(cipher);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

int records_read(const struct state *st, PyObject *tls, Py_ssize_t room, PyObject **plain)
{
    PyObject *args[] = {tls, PyLong_FromSsize_t(room)};
    *plain = args[1] ? PyObject_VectorcallMethod(st->s_read, args, 2, NULL) : NULL;
    Py_XDECREF(args[1]);
    if (*plain && PyBytes_CheckExact(*plain))
        return 1;
    if (*plain) {
        Py_CLEAR(*plain);
        PyErr_SetString(PyExc_TypeError, "SSLObject.read() returned no bytes");
        return -1;
    }
    if (!PyErr_ExceptionMatches(st->tls_again))
        return -1;
    PyErr_Clear();
    return 0;
}

bool records_left(const struct state *st, PyObject *bio)
{
    PyObject *pending = PyObject_GetAttr(bio, st->s_pending);
    int rc = pending ? PyObject_IsTrue(pending) : -1;
    Py_XDECREF(pending);
    if (rc < 0)
        PyErr_Clear();
    return rc != 0;
}

bool records_go_on(const struct state *st, PyObject *incoming, Py_ssize_t *room, PyObject *plain)
{
    if (PyBytes_GET_SIZE(plain) < *room || *room == RECORD_BYTES)
        return records_left(st, incoming);
    *room = RECORD_BYTES;
    return true;
}

PyObject *records_make(const struct state *st, PyObject *tls, PyObject *outgoing, PyObject *plain,
                       Py_ssize_t *count)
{
    PyObject *args[] = {tls, plain}, *got = PyObject_VectorcallMethod(st->s_write, args, 2, NULL);
    *count = got ? PyLong_AsSsize_t(got) : -1;
    Py_XDECREF(got);
    return PyErr_Occurred() ? NULL : PyObject_CallMethodNoArgs(outgoing, st->s_read);
}
