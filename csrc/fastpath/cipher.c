/* cipher.c -- TLS on native connections, for each message: the twin of what is hot in pyloop/tls.py.
 *
 *     PL_EV_CIPHER -> SSLObject -> pl_conn_feed
 *     send -> framing's head and tail -> _backlog -> the turn's end: SSLObject -> pl_conn_write
 *
 * A TLSConnection's own attributes are the truth. What is rare is done by its Python methods: the handshake, the end,
 * what fails, what is not bytes or too long for a record. */
#include "fastpath.h"

#define CLOSED 4 /* of pyloop/inbox.py */

/* Two of its attributes; false, with what was raised, if they are not there. */
static bool get_two(struct endpoint *c, PyObject *first, PyObject **one, PyObject *second,
                    PyObject **other)
{
    *one = PyObject_GetAttr((PyObject *)c, first);
    *other = *one ? PyObject_GetAttr((PyObject *)c, second) : NULL;
    if (!*other)
        Py_CLEAR(*one);
    return *other;
}

static bool is_true(struct endpoint *c, PyObject *name)
{
    PyObject *value = PyObject_GetAttr((PyObject *)c, name);
    bool is = value == Py_True;
    if (!value)
        PyErr_Clear();
    Py_XDECREF(value);
    return is;
}

/* 0 or -1. Takes both arguments, which may be NULL: then something was raised. */
static int tell(struct endpoint *c, PyObject *method, PyObject *one, PyObject *other)
{
    PyObject *args[] = {(PyObject *)c, one, other};
    PyObject *got = one && other ? PyObject_VectorcallMethod(method, args, 3, NULL) : NULL;
    Py_XDECREF(one);
    Py_XDECREF(other);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

/* ---- in ---- */

static int feed(struct endpoint *c, PyObject *plain)
{
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(plain);
    int code = c->st->api->conn_feed(c->core, c->id, data, (size_t)PyBytes_GET_SIZE(plain), 0);
    if (code >= 0)
        return 0;
    PyObject *number = PyLong_FromLong(code);
    PyObject *got = number ? PyObject_CallMethodOneArg((PyObject *)c, c->st->s_fed, number) : NULL;
    Py_XDECREF(number);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

/* Feed what the records hold. 0; 1: the peer has said that it ends; -1. */
static int read_all(struct endpoint *c, PyObject *tls, PyObject *incoming, Py_ssize_t room)
{
    PyObject *plain;
    int rc;
    while ((rc = records_read(c->st, tls, room, &plain)) > 0) {
        bool ended = PyBytes_GET_SIZE(plain) == 0;
        bool more = !ended && records_go_on(c->st, incoming, &room, plain);
        rc = ended ? 1 : feed(c, plain);
        Py_DECREF(plain);
        if (rc != 0 || !more)
            break;
    }
    return rc;
}

/* Has OpenSSL something to say, or is there plaintext that could not be encrypted before? */
static bool has_output(struct endpoint *c)
{
    const struct state *st = c->st;
    PyObject *outgoing, *backlog;
    if (!get_two(c, st->s_outgoing, &outgoing, st->s_backlog, &backlog)) {
        PyErr_Clear();
        return true;
    }
    bool waits = PyByteArray_CheckExact(backlog) && PyByteArray_GET_SIZE(backlog);
    bool has = records_left(st, outgoing) || (waits && !is_true(c, st->s_due));
    Py_DECREF(backlog);
    Py_DECREF(outgoing);
    return has;
}

static int decrypt(struct endpoint *c, const struct pl_event *e)
{
    const struct state *st = c->st;
    PyObject *tls, *incoming, *exc = NULL;
    if (!get_two(c, st->s_ssl, &tls, st->s_incoming, &incoming))
        return -1;
    int rc = records_take(st, incoming, e->data, e->end - e->data);
    if (rc == 0)
        rc = read_all(c, tls, incoming, records_room(e->end - e->data));
    Py_DECREF(incoming);
    Py_DECREF(tls);
    if (rc < 0 && !PyErr_ExceptionMatches(st->tls_error))
        return -1;
    if (rc == 0 && !has_output(c))
        return 0;
    exc = rc < 0 ? exception_take() : Py_NewRef(Py_None);
    return tell(c, st->s_decrypted, Py_NewRef(rc > 0 ? Py_True : Py_False), exc);
}

int cipher_received(struct endpoint *c, const struct pl_event *e)
{
    if (!cipher_is_ours(c) || c->gate & CLOSED || e->data == e->end ||
        !is_true(c, c->st->s_is_ready))
        return 0;
    Py_INCREF(c);
    int rc = decrypt(c, e);
    if (rc < 0)
        rc = walk_fail(c->st, (PyObject *)c);
    Py_DECREF(c);
    return rc < 0 ? -1 : 1;
}

/* ---- out ---- */

/* Append a message to the plaintext that waits. 0 or -1. */
static int append(PyObject *backlog, PyObject *message, const struct pl_wrap *w)
{
    Py_ssize_t had = PyByteArray_GET_SIZE(backlog), len = PyBytes_GET_SIZE(message);
    if (PyByteArray_Resize(backlog, had + w->head_len + len + w->tail_len) < 0)
        return -1;
    char *to = PyByteArray_AS_STRING(backlog) + had;
    memcpy(to, w->head, w->head_len);
    memcpy(to + w->head_len, PyBytes_AS_STRING(message), (size_t)len);
    memcpy(to + w->head_len + len, w->tail, w->tail_len);
    return 0;
}

/* To be encrypted at once if it fills a record, else at the turn's end. */
static int schedule(struct endpoint *c, Py_ssize_t waiting)
{
    const struct state *st = c->st;
    PyObject *self = (PyObject *)c, *got = NULL;
    if (waiting >= RECORD_BYTES) {
        got = PyObject_CallMethodNoArgs(self, st->s_encrypt);
        if (!got)
            return walk_fail(st, self); /* what was sent before is gone too */
    } else if (is_true(c, st->s_due)) {
        return 0;
    } else {
        PyObject *owner = PyObject_GetAttr(self, st->s_owner);
        PyObject *loop = owner ? PyObject_GetAttr(owner, st->s_loop) : NULL;
        PyObject *args[] = {loop, st->encrypt_due, self};
        got = loop ? PyObject_VectorcallMethod(st->s_call_soon, args, 3, NULL) : NULL;
        if (got && PyObject_SetAttr(self, st->s_due, Py_True) < 0)
            Py_CLEAR(got);
        Py_XDECREF(loop);
        Py_XDECREF(owner);
    }
    Py_XDECREF(got);
    return got ? 0 : -1;
}

static int send_plain(struct endpoint *c, PyObject *message, PyObject *backlog, bool framed)
{
    const struct state *st = c->st;
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(message);
    size_t len = (size_t)PyBytes_GET_SIZE(message), waiting = (size_t)PyByteArray_GET_SIZE(backlog);
    struct pl_wrap wrap = {.head_len = 0};
    if (framed && st->api->conn_wrap(c->core, c->id, data, len, &wrap) < 0)
        return 0;
    int code = st->api->conn_admit(c->core, c->id, waiting);
    if (code)
        return tell(c, st->s_sent, PyLong_FromLong(code), PyLong_FromSize_t(len)) < 0 ? -1 : 1;
    if (append(backlog, message, &wrap) < 0)
        return -1;
    if (is_true(c, st->s_is_ready) && schedule(c, PyByteArray_GET_SIZE(backlog)) < 0)
        return -1;
    return 1;
}

int cipher_send(struct endpoint *c, PyObject *message, bool framed)
{
    if (c->gate & CLOSED)
        return 0;
    PyObject *backlog = PyObject_GetAttr((PyObject *)c, c->st->s_backlog);
    int rc = backlog ? 0 : -1;
    if (backlog && PyByteArray_CheckExact(backlog))
        rc = send_plain(c, message, backlog, framed);
    Py_XDECREF(backlog);
    return rc;
}

/* Queue what a backlog of no more than a record became. 0 or -1. */
static int encrypt(struct endpoint *c, PyObject *plain)
{
    const struct state *st = c->st;
    PyObject *tls, *outgoing, *cipher = NULL;
    Py_ssize_t count = 0;
    if (!get_two(c, st->s_ssl, &tls, st->s_outgoing, &outgoing))
        return -1;
    cipher = records_make(st, tls, outgoing, plain, &count);
    Py_DECREF(outgoing);
    Py_DECREF(tls);
    if (!cipher) {
        if (!PyErr_ExceptionMatches(st->tls_error))
            return -1;
        return tell(c, st->s_not_encrypted, exception_take(), Py_NewRef(plain));
    }
    size_t len = (size_t)PyBytes_GET_SIZE(cipher);
    int code = st->api->conn_write(c->core, c->id, (const uint8_t *)PyBytes_AS_STRING(cipher), len);
    Py_DECREF(cipher);
    Py_ssize_t all = PyByteArray_GET_SIZE(plain);
    /* The rest first: whoever is told to pause may send more, or close. */
    if (count < all && tell(c, st->s_not_encrypted, Py_NewRef(Py_None),
                            PySequence_GetSlice(plain, count, all)) < 0)
        return -1;
    return code ? tell(c, st->s_sent, PyLong_FromLong(code), PyLong_FromSize_t(len)) : 0;
}

PyObject *cipher_encrypt_due(PyObject *module, PyObject *conn)
{
    const struct state *st = PyModule_GetState(module);
    struct endpoint *c = (struct endpoint *)conn;
    if ((PyObject *)Py_TYPE(conn) != st->tls_connection)
        return PyErr_Format(PyExc_TypeError, "encrypt_due: expected a TLSConnection, got %R", conn);
    if (PyObject_SetAttr(conn, st->s_due, Py_False) < 0)
        return NULL;
    if (c->gate & CLOSED)
        Py_RETURN_NONE;
    PyObject *plain = PyObject_GetAttr(conn, st->s_backlog);
    if (!plain || !PyByteArray_CheckExact(plain) || PyByteArray_GET_SIZE(plain) > RECORD_BYTES) {
        PyErr_Clear();
        Py_XDECREF(plain);
        return PyObject_CallMethodNoArgs(conn, st->s_turn_ends);
    }
    PyObject *fresh = PyByteArray_FromStringAndSize(NULL, 0);
    int rc = fresh ? PyObject_SetAttr(conn, st->s_backlog, fresh) : -1;
    if (rc == 0 && PyByteArray_GET_SIZE(plain))
        rc = encrypt(c, plain);
    if (rc < 0)
        rc = walk_fail(st, conn); /* what it was is gone */
    Py_XDECREF(fresh);
    Py_DECREF(plain);
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}
