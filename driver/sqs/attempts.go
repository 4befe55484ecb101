package sqs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// withAttempts gives the clients of the options bounded attempts, and returns the
// option of a call that polls.
func withAttempts(o *Options) (poll func(*sqs.Options)) {
	known, one := o.Client.Options(), o.RequestTimeout
	plain := frozen(known.HTTPClient)
	o.Client = sqs.New(known, func(s *sqs.Options) { s.HTTPClient = &attempts{plain, one} })
	if o.Topics != nil {
		known := o.Topics.Options()
		o.Topics = sns.New(known, func(s *sns.Options) { s.HTTPClient = &attempts{frozen(known.HTTPClient), one} })
	}
	most := o.PollWait + one
	return func(s *sqs.Options) {
		s.HTTPClient = &attempts{plain, most}
		s.RetryMaxAttempts = 1 // the poller asks again, and tells of it
	}
}

// frozen returns the client behind one of the SDK's own, which does not let its
// connections be closed.
func frozen(client aws.HTTPClient) aws.HTTPClient {
	if buildable, ok := client.(interface{ Freeze() aws.HTTPClient }); ok {
		return buildable.Freeze()
	}
	return client
}

// attempts ends requests that get no answer in time, and with them the connections
// that nobody uses: they are likely to be as dead, and each would take the time of
// one more request. Safe for concurrent use.
type attempts struct {
	client aws.HTTPClient
	time   time.Duration
}

// Do sends one request.
func (a *attempts) Do(request *http.Request) (*http.Response, error) {
	silent := &silentError{a.time}
	ctx, cancel := context.WithTimeoutCause(request.Context(), a.time, silent)
	response, err := a.client.Do(request.WithContext(ctx))
	if err == nil {
		response.Body = &body{response.Body, ctx, cancel, a}
		return response, nil
	}
	err = a.ended(ctx, err)
	cancel()
	return nil, err
}

// ended returns what the end of an attempt is to the SDK.
func (a *attempts) ended(ctx context.Context, err error) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	if idle, ok := a.client.(interface{ CloseIdleConnections() }); ok {
		idle.CloseIdleConnections()
	}
	if silent, ok := errors.AsType[*silentError](context.Cause(ctx)); ok {
		return silent
	}
	return err
}

// body is of an answer that has begun.
type body struct {
	io.ReadCloser
	ctx      context.Context
	cancel   context.CancelFunc
	attempts *attempts
}

// Read reads on. An answer that stops in the middle is none.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.attempts.ended(b.ctx, err)
	}
	return n, err
}

// Close ends the attempt.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}

// silentError says that there was no answer. The SDK tries again, on another
// connection.
type silentError struct{ after time.Duration }

func (e *silentError) Error() string { return fmt.Sprintf("no answer for %v", e.after) }

// Timeout implements [net.Error].
func (e *silentError) Timeout() bool { return true }

// RetryableError is what the SDK asks.
func (e *silentError) RetryableError() bool { return true }
