package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Client asks flatd by HTTP on its control socket.
type Client struct{ Socket string } // a path

// quickTime bounds every request but a stream of events.
const quickTime = 30 * time.Second

// do sends a request; the caller closes the response's body. An answer other
// than 2xx is an error with flatd's own words.
func (c *Client) do(ctx context.Context, method, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://flatd"+path, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
	}}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return nil, c.explain(err)
	}
	if response.StatusCode/100 == 2 {
		return response, nil
	}
	defer response.Body.Close()
	var answer struct{ Error string }
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&answer); err != nil || answer.Error == "" {
		return nil, Refusal("flatd answered " + response.Status)
	}
	return nil, Refusal(answer.Error)
}

// Refusal is flatd's own word for why it does not do what it is asked.
type Refusal string

// Error implements error.
func (r Refusal) Error() string { return string(r) }

// advice is an error that says what to do about its cause.
type advice struct {
	text  string
	cause error
}

func advise(cause error, format string, args ...any) error {
	return &advice{fmt.Sprintf(format, args...), cause}
}

// Error implements error.
func (a *advice) Error() string { return a.text }

// Unwrap lets errors.Is find the cause.
func (a *advice) Unwrap() error { return a.cause }

// explain says what to do about a socket that does not answer.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return advise(err, "no socket %s: flatd does not run; start it with `systemctl start flatd`, or name its socket with --socket", c.Socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return advise(err, "nobody listens on %s: flatd does not run; start it with `systemctl start flatd`", c.Socket)
	case errors.Is(err, fs.ErrPermission):
		return advise(err, "not allowed to use %s: be root or in the group flatd", c.Socket)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return advise(err, "flatd does not answer on %s; see `systemctl status flatd`", c.Socket)
	}
	return err
}

// quick sends a request within quickTime, and has read take the answer.
func (c *Client) quick(ctx context.Context, method, path string, read func(context.Context, io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, quickTime)
	defer cancel()
	response, err := c.do(ctx, method, path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return read(ctx, response.Body)
}

// Get decodes the JSON of an answer into to.
func (c *Client) Get(ctx context.Context, path string, to any) error {
	return c.quick(ctx, http.MethodGet, path, func(_ context.Context, body io.Reader) error {
		if err := json.NewDecoder(body).Decode(to); err != nil {
			return fmt.Errorf("read flatd's answer: %w", err)
		}
		return nil
	})
}

// Post has flatd do something.
func (c *Client) Post(ctx context.Context, path string) error {
	return c.quick(ctx, http.MethodPost, path, func(context.Context, io.Reader) error { return nil })
}

// Copy copies an answer as it is, until it ends or ctx does.
func (c *Client) Copy(ctx context.Context, path string, to io.Writer) error {
	return c.quick(ctx, http.MethodGet, path, func(ctx context.Context, body io.Reader) error {
		_, err := io.Copy(to, body)
		if ctx.Err() != nil || errors.Is(err, syscall.EPIPE) {
			return nil // interrupted, or piped into head
		}
		if err != nil {
			return fmt.Errorf("the connection to flatd broke: %w", err)
		}
		return nil
	})
}
