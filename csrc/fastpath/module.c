/* module.c -- pyloop._fastpath: its state, and how it finds the core and the Python twins.
 *
 *     connect(address)     once, before anything else is made: the core's table of functions (pyloop_api.h)
 *     use_running(...)     the Python functions that serve when the C ones do not
 *     use_core(...)        ffi.NULL, and what tells a loop's address
 *     use_calls(...)       pyloop's functions that the walk knows by sight, and does itself
 *     use_inbox(...)       pyloop's Inbox, and what raises why one has ended
 *     use_tls(...)         pyloop's TLSProtocol, and what asyncio has for it
 *     use_tls_connection(...)  pyloop's TLSConnection, and ssl.SSLError
 *
 * Multi-phase initialisation (PEP 489) and heap types: each interpreter has its own state. It has been tried in one
 * interpreter at a time with the GIL, and says so. */
#include "fastpath.h"

static const struct {
    const char *text;
    size_t place;
} names[] = {
    {"context", offsetof(struct state, s_context)},
    {"Task", offsetof(struct state, s_task)},
    {"_run", offsetof(struct state, s_run)},
    {"time", offsetof(struct state, s_time)},
    {"_core", offsetof(struct state, s_core)},
    {"_fail", offsetof(struct state, s_fail)},
    {"_gated", offsetof(struct state, s_gated)},
    {"message_received", offsetof(struct state, s_message_received)},
    {"join", offsetof(struct state, s_join)},
    {"_fatal_error", offsetof(struct state, s_fatal_error)},
    {"get_buffer", offsetof(struct state, s_get_buffer)},
    {"buffer_updated", offsetof(struct state, s_buffer_updated)},
    {"_received_eof", offsetof(struct state, s_received_eof)},
    {"owners", offsetof(struct state, s_owners)},
    {"accepted", offsetof(struct state, s_accepted)},
    {"_sent", offsetof(struct state, s_sent)},
    {"_send_other", offsetof(struct state, s_send_other)},
    {"_written", offsetof(struct state, s_written)},
    {"_write_other", offsetof(struct state, s_write_other)},
    {"_owner", offsetof(struct state, s_owner)},
    {"loop", offsetof(struct state, s_loop)},
    {"create_future", offsetof(struct state, s_create_future)},
    {"done", offsetof(struct state, s_done)},
    {"set_result", offsetof(struct state, s_set_result)},
    {"_pause", offsetof(struct state, s_pause)},
    {"_resume", offsetof(struct state, s_resume)},
    {"_inbox", offsetof(struct state, s_inbox)},
    {"_drained", offsetof(struct state, s_drained)},
    {"call_soon", offsetof(struct state, s_call_soon)},
    {"_ready", offsetof(struct state, s_is_ready)},
    {"_ssl", offsetof(struct state, s_ssl)},
    {"_backlog", offsetof(struct state, s_backlog)},
    {"_due", offsetof(struct state, s_due)},
    {"_fed", offsetof(struct state, s_fed)},
    {"_decrypted", offsetof(struct state, s_decrypted)},
    {"_encrypt", offsetof(struct state, s_encrypt)},
    {"_turn_ends", offsetof(struct state, s_turn_ends)},
    {"_not_encrypted", offsetof(struct state, s_not_encrypted)},
    {"read", offsetof(struct state, s_read)},
    {"write", offsetof(struct state, s_write)},
    {"pending", offsetof(struct state, s_pending)},
    {"data_received", offsetof(struct state, s_data_received)},
    {"datagram_received", offsetof(struct state, s_datagram_received)},
    {"_unpack", offsetof(struct state, s_unpack)},
    {"_state", offsetof(struct state, s_state)},
    {"_sslobj", offsetof(struct state, s_sslobj)},
    {"_incoming", offsetof(struct state, s_incoming)},
    {"_outgoing", offsetof(struct state, s_outgoing)},
    {"_transport", offsetof(struct state, s_transport)},
    {"_app_protocol", offsetof(struct state, s_app_protocol)},
    {"_app_protocol_is_buffer", offsetof(struct state, s_app_protocol_is_buffer)},
    {"_app_reading_paused", offsetof(struct state, s_app_reading_paused)},
    {"_app_writing_paused", offsetof(struct state, s_app_writing_paused)},
    {"_ssl_reading_paused", offsetof(struct state, s_ssl_reading_paused)},
    {"_ssl_writing_paused", offsetof(struct state, s_ssl_writing_paused)},
    {"_ssl_protocol", offsetof(struct state, s_ssl_protocol)},
    {"_ssl_buffer_view", offsetof(struct state, s_ssl_buffer_view)},
    {"_write_backlog", offsetof(struct state, s_write_backlog)},
    {"_outgoing_high_water", offsetof(struct state, s_outgoing_high_water)},
    {"_end_reading", offsetof(struct state, s_end_reading)},
    {"_settle", offsetof(struct state, s_settle)},
    {"_write_appdata", offsetof(struct state, s_write_appdata)},
};

static struct state *module_state(PyObject *module) { return PyModule_GetState(module); }

static PyObject *connect(PyObject *module, PyObject *address)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(address);
    if (PyErr_Occurred())
        return NULL;
    const struct pl_api *api = (const struct pl_api *)(uintptr_t)number;
    if (!api || api->version != PL_API_VERSION || api->size != sizeof *api ||
        api->event != sizeof(struct pl_event)) {
        PyErr_Format(PyExc_ImportError,
                     "pyloop._fastpath was built for version %d of the core's table, and the core "
                     "has %u: build both again",
                     PL_API_VERSION, api ? api->version : 0);
        return NULL;
    }
    module_state(module)->api = api;
    Py_RETURN_NONE;
}

static PyObject *use_running(PyObject *module, PyObject *args)
{
    struct state *st = module_state(module);
    PyObject *given[TWIN_COUNT];
    if (!PyArg_ParseTuple(args, "OOOOOOO:use_running", &given[TWIN_CALL_SOON],
                          &given[TWIN_CALL_SOON_THREADSAFE], &given[TWIN_CALL_LATER],
                          &given[TWIN_CALL_AT], &given[TWIN_RUN_ONCE], &given[TWIN_CREATE_TASK],
                          &given[TWIN_REPORT_FAILED]))
        return NULL;
    for (int i = 0; i < TWIN_COUNT; i++)
        Py_XSETREF(st->twins[i], Py_NewRef(given[i]));
    Py_RETURN_NONE;
}

static PyObject *use_core(PyObject *module, PyObject *args)
{
    struct state *st = module_state(module);
    PyObject *null, *address_of;
    if (!PyArg_ParseTuple(args, "OO:use_core", &null, &address_of))
        return NULL;
    Py_XSETREF(st->null, Py_NewRef(null));
    Py_XSETREF(st->address_of, Py_NewRef(address_of));
    Py_RETURN_NONE;
}

static PyObject *use_calls(PyObject *module, PyObject *args)
{
    struct state *st = module_state(module);
    PyObject *deliver, *call_it, *feed_buffered;
    if (!PyArg_ParseTuple(args, "OOO:use_calls", &deliver, &call_it, &feed_buffered))
        return NULL;
    Py_XSETREF(st->feed_buffered, Py_NewRef(feed_buffered));
    Py_XSETREF(st->deliver, Py_NewRef(deliver));
    Py_XSETREF(st->call_it, Py_NewRef(call_it));
    Py_RETURN_NONE;
}

static PyObject *use_inbox(PyObject *module, PyObject *args)
{
    struct state *st = module_state(module);
    PyObject *type, *end;
    if (!PyArg_ParseTuple(args, "O!O:use_inbox", &PyType_Type, &type, &end))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)type, st->Inbox)) {
        PyErr_SetString(PyExc_TypeError, "use_inbox: expected a class derived from Inbox");
        return NULL;
    }
    Py_XSETREF(st->inbox_type, Py_NewRef(type));
    Py_XSETREF(st->inbox_end, Py_NewRef(end));
    Py_RETURN_NONE;
}

static PyObject *use_tls(PyObject *module, PyObject *args)
{
    struct state *st = module_state(module);
    PyObject *protocol, *wrapped, *again, *failed;
    if (!PyArg_ParseTuple(args, "O!OO!U:use_tls", &PyType_Type, &protocol, &wrapped, &PyTuple_Type,
                          &again, &failed))
        return NULL;
    Py_XSETREF(st->tls_protocol, Py_NewRef(protocol));
    Py_XSETREF(st->tls_wrapped, Py_NewRef(wrapped));
    Py_XSETREF(st->tls_again, Py_NewRef(again));
    Py_XSETREF(st->tls_failed, Py_NewRef(failed));
    Py_RETURN_NONE;
}

static PyObject *use_tls_connection(PyObject *module, PyObject *args)
{
    struct state *st = module_state(module);
    PyObject *type, *error;
    if (!PyArg_ParseTuple(args, "O!O:use_tls_connection", &PyType_Type, &type, &error))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)type, st->ConnectionBase)) {
        PyErr_SetString(PyExc_TypeError, "use_tls_connection: expected a class of connections");
        return NULL;
    }
    PyObject *due = PyObject_GetAttrString(module, "encrypt_due");
    if (!due)
        return NULL;
    Py_XSETREF(st->encrypt_due, due);
    Py_XSETREF(st->tls_connection, Py_NewRef(type));
    Py_XSETREF(st->tls_error, Py_NewRef(error));
    Py_RETURN_NONE;
}

/* A class's own copy of a method that it inherits unchanged. 0 or -1. */
static int own_method(PyTypeObject *cls, PyTypeObject *base, PyMethodDef *method)
{
    PyObject *name = PyUnicode_FromString(method->ml_name);
    PyObject *found = name ? PyObject_GetAttr((PyObject *)cls, name) : NULL;
    PyObject *inherited = found ? PyObject_GetAttr((PyObject *)base, name) : NULL;
    PyObject *copy = found == inherited && found ? PyDescr_NewMethod(cls, method) : NULL;
    int rc = copy ? PyObject_SetAttr((PyObject *)cls, name, copy) : 0;
    Py_XDECREF(copy);
    Py_XDECREF(inherited);
    Py_XDECREF(found);
    Py_XDECREF(name);
    return rc < 0 || PyErr_Occurred() ? -1 : 0;
}

/* CPython calls a method of C at once when the object's class is the very one that it was made for: so a class that
 * is used as it is gets those that it inherits from ours made for it. */
static PyObject *own(PyObject *module, PyObject *cls)
{
    const struct state *st = module_state(module);
    PyTypeObject *type = PyType_Check(cls) ? (PyTypeObject *)cls : &PyBaseObject_Type;
    const struct {
        PyTypeObject *base;
        PyMethodDef *methods;
    } bases[] = {{st->ConnectionBase, connection_methods},
                 {st->TransportBase, transport_methods},
                 {st->DatagramBase, datagram_methods},
                 {st->Turn, turn_methods}};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(bases); i++) {
        if (!PyType_IsSubtype(type, bases[i].base))
            continue;
        for (PyMethodDef *method = bases[i].methods; method->ml_name; method++)
            if (method->ml_name[0] != '_' && own_method(type, bases[i].base, method) < 0)
                return NULL;
        return Py_NewRef(cls);
    }
    return PyErr_Format(PyExc_TypeError, "own: expected a class derived from ours, got %R", cls);
}

static int fastpath_exec(PyObject *module)
{
    struct state *st = module_state(module);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        PyObject **place = (PyObject **)((char *)st + names[i].place);
        if (!(*place = PyUnicode_InternFromString(names[i].text)))
            return -1;
    }
    if (!(st->empty_tuple = PyTuple_New(0)) || !(st->any_size = PyLong_FromLong(-1)) ||
        !(st->empty_bytes = PyBytes_FromStringAndSize(NULL, 0)))
        return -1;
    if (ready_setup(module, st) < 0 || handle_setup(module, st) < 0 || walk_setup(module, st) < 0)
        return -1;
    if (turn_setup(module, st) < 0 || endpoint_setup(module, st) < 0)
        return -1;
    if (inbox_setup(module, st) < 0 || awaiting_setup(module, st) < 0)
        return -1;
    return tls_setup(module, st) < 0 ? -1 : datagram_setup(module, st);
}

static int fastpath_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct state *st = module_state(module);
    Py_VISIT(st->Ready);
    Py_VISIT(st->Handle);
    Py_VISIT(st->TimerHandle);
    Py_VISIT(st->Turn);
    Py_VISIT(st->Walk);
    Py_VISIT(st->ConnectionBase);
    Py_VISIT(st->TransportBase);
    Py_VISIT(st->Inbox);
    Py_VISIT(st->Awaiting);
    Py_VISIT(st->TLSTransportBase);
    Py_VISIT(st->DatagramBase);
    Py_VISIT(st->tls_connection);
    Py_VISIT(st->tls_error);
    Py_VISIT(st->encrypt_due);
    Py_VISIT(st->tls_protocol);
    Py_VISIT(st->tls_wrapped);
    Py_VISIT(st->tls_again);
    Py_VISIT(st->null);
    Py_VISIT(st->address_of);
    Py_VISIT(st->deliver);
    Py_VISIT(st->call_it);
    Py_VISIT(st->feed_buffered);
    Py_VISIT(st->inbox_push);
    Py_VISIT(st->inbox_type);
    Py_VISIT(st->inbox_end);
    Py_VISIT(st->loop_seen);
    Py_VISIT(st->Future);
    Py_VISIT(st->tasks);
    Py_VISIT(st->loop_names);
    for (int i = 0; i < TWIN_COUNT; i++)
        Py_VISIT(st->twins[i]);
    return 0;
}

static void free_all(struct free_list *list)
{
    while (list->count)
        PyObject_GC_Del(list->items[--list->count]);
}

static int fastpath_clear(PyObject *module)
{
    struct state *st = module_state(module);
    free_all(&st->handles);
    free_all(&st->timers);
    free_all(&st->awaitings);
    Py_CLEAR(st->Ready);
    Py_CLEAR(st->Handle);
    Py_CLEAR(st->TimerHandle);
    Py_CLEAR(st->Turn);
    Py_CLEAR(st->Walk);
    Py_CLEAR(st->ConnectionBase);
    Py_CLEAR(st->TransportBase);
    Py_CLEAR(st->Inbox);
    Py_CLEAR(st->Awaiting);
    Py_CLEAR(st->TLSTransportBase);
    Py_CLEAR(st->DatagramBase);
    Py_CLEAR(st->tls_connection);
    Py_CLEAR(st->tls_error);
    Py_CLEAR(st->encrypt_due);
    Py_CLEAR(st->tls_protocol);
    Py_CLEAR(st->tls_wrapped);
    Py_CLEAR(st->tls_again);
    Py_CLEAR(st->tls_failed);
    Py_CLEAR(st->null);
    Py_CLEAR(st->address_of);
    Py_CLEAR(st->deliver);
    Py_CLEAR(st->call_it);
    Py_CLEAR(st->feed_buffered);
    Py_CLEAR(st->inbox_push);
    Py_CLEAR(st->inbox_type);
    Py_CLEAR(st->inbox_end);
    Py_CLEAR(st->loop_seen);
    Py_CLEAR(st->Future);
    Py_CLEAR(st->tasks);
    Py_CLEAR(st->loop_names);
    for (int i = 0; i < TWIN_COUNT; i++)
        Py_CLEAR(st->twins[i]);
    Py_CLEAR(st->empty_tuple);
    Py_CLEAR(st->any_size);
    Py_CLEAR(st->empty_bytes);
    Py_CLEAR(st->context_seen);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++)
        Py_CLEAR(*(PyObject **)((char *)st + names[i].place));
    return 0;
}

static void fastpath_free(void *module) { fastpath_clear(module); }

static PyMethodDef functions[] = {
    {"connect", connect, METH_O, "Take the address of the core's table. Raises ImportError."},
    {"use_core", use_core, METH_VARARGS, "Take ffi.NULL, and what tells the address of a loop."},
    {"use_calls", use_calls, METH_VARARGS, "Take the functions that the walk does itself."},
    {"use_inbox", use_inbox, METH_VARARGS, "Take Inbox, and what raises why one has ended."},
    {"use_tls", use_tls, METH_VARARGS, "Take TLSProtocol, and what asyncio has for it."},
    {"use_tls_connection", use_tls_connection, METH_VARARGS, "Take TLSConnection, and SSLError."},
    {"encrypt_due", cipher_encrypt_due, METH_O, "Encrypt what a TLSConnection was to send."},
    {"own", own, METH_O, "Give a class methods of its own that it inherits, and return it."},
    {"use_running", use_running, METH_VARARGS, "Take the Python twins of a loop's methods."},
    {0},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fastpath_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0},
};

struct PyModuleDef fastpath_module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "pyloop._fastpath",
    .m_doc = "C-API twins of pyloop's hottest objects, for CPython.",
    .m_size = sizeof(struct state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = fastpath_traverse,
    .m_clear = fastpath_clear,
    .m_free = fastpath_free,
};

PyMODINIT_FUNC PyInit__fastpath(void) { return PyModuleDef_Init(&fastpath_module); }
