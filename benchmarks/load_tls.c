/* load_tls.c -- TLS for the load generator, over OpenSSL: see SSL_read(3), SSL_write(3).
 *
 * Compiled without LOAD_TLS, and so without OpenSSL, --tls is refused. The server's
 * certificate must be for "localhost", and of the authority in the file that --tls names.
 * The handshake blocks; what comes after it does not. Whoever receives has room for a whole
 * record, 16 KiB, so that OpenSSL keeps nothing back of which epoll does not know.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>

#ifdef LOAD_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>

static SSL_CTX *context;

int tls_prepare(const char *authority)
{
    context = SSL_CTX_new(TLS_client_method());
    if (!context || SSL_CTX_load_verify_locations(context, authority, NULL) != 1) {
        fprintf(stderr, "load: no certificate in %s\n", authority);
        return -1;
    }
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return 0;
}

int tls_open(struct conn *c)
{
    SSL *ssl = c->tls = SSL_new(context);
    if (!ssl || SSL_set1_host(ssl, "localhost") != 1 || SSL_set_fd(ssl, c->fd) != 1) {
        return -ENOMEM;
    }
    if (SSL_connect(ssl) != 1) {
        ERR_print_errors_fp(stderr);
        return -EPROTO;
    }
    return 0;
}

void tls_close(struct conn *c)
{
    SSL_free(c->tls);
    c->tls = NULL;
}

/* Say by errno why a call failed. -1. */
static ssize_t failed(SSL *ssl, int rc)
{
    int error = errno, what = SSL_get_error(ssl, rc);
    if (what == SSL_ERROR_WANT_READ || what == SSL_ERROR_WANT_WRITE) {
        errno = EAGAIN;
    } else {
        errno = what == SSL_ERROR_SYSCALL && error && error != EAGAIN ? error : EPROTO;
    }
    return -1;
}

ssize_t tls_send(struct conn *c, const void *data, size_t len)
{
    size_t sent;
    ERR_clear_error();
    int rc = SSL_write_ex(c->tls, data, len, &sent);
    return rc == 1 ? (ssize_t)sent : failed(c->tls, rc);
}

ssize_t tls_receive(struct conn *c, void *data, size_t len)
{
    size_t got;
    ERR_clear_error();
    int rc = SSL_read_ex(c->tls, data, len, &got);
    if (rc != 1 && SSL_get_error(c->tls, rc) == SSL_ERROR_ZERO_RETURN) {
        return 0;
    }
    return rc == 1 ? (ssize_t)got : failed(c->tls, rc);
}

#else

int tls_prepare(const char *authority)
{
    (void)authority;
    fputs("load: built without OpenSSL, so there is no --tls\n", stderr);
    return -1;
}

int tls_open(struct conn *c)
{
    (void)c;
    return -ENOSYS;
}

void tls_close(struct conn *c)
{
    (void)c;
}

ssize_t tls_send(struct conn *c, const void *data, size_t len)
{
    (void)c, (void)data, (void)len;
    errno = ENOSYS;
    return -1;
}

ssize_t tls_receive(struct conn *c, void *data, size_t len)
{
    (void)c, (void)data, (void)len;
    errno = ENOSYS;
    return -1;
}
#endif
