package sqs

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// A server that falls silent: what it has accepted until then passes nothing any
// more, and what comes later works.
type silentServer struct {
	mu      sync.Mutex
	dialled int
	silent  []chan struct{} // closed: that connection passes nothing
}

func (s *silentServer) hush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.silent {
		close(c)
	}
	s.silent = nil
}

// transport dials the server's handler.
func (s *silentServer) transport(handler http.Handler) *http.Transport {
	return &http.Transport{MaxIdleConnsPerHost: 10, DialContext: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		silent := make(chan struct{})
		s.mu.Lock()
		s.dialled++
		s.silent = append(s.silent, silent)
		s.mu.Unlock()
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-silent:
				_, _ = io.Copy(io.Discard, r.Body) // only then a server sees the end of a connection
				<-r.Context().Done()
			default:
				handler.ServeHTTP(w, r)
			}
		})}
		go func() { _ = server.Serve(&once{conn: theirs}) }()
		return ours, nil
	}}
}

// once is a listener of one connection.
type once struct{ conn net.Conn }

func (o *once) Accept() (net.Conn, error) {
	if c := o.conn; c != nil {
		o.conn = nil
		return c, nil
	}
	return nil, io.EOF
}

func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return &net.IPAddr{} }

func TestConnectionsThatDieWithoutAWordCostOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &silentServer{}
		gate := make(chan struct{})
		transport := server.transport(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			<-gate // so that each call has a connection of its own
			w.Header().Set("Content-Type", "application/x-amz-json-1.0")
			_, _ = io.WriteString(w, `{"QueueUrls":[]}`)
		}))
		defer transport.CloseIdleConnections()
		options := Options{PollWait: time.Second, RequestTimeout: 5 * time.Second, Client: sqs.New(sqs.Options{
			Region: "us-east-1", BaseEndpoint: aws.String("http://sqs.test"), Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
			HTTPClient: &http.Client{Transport: transport},
		})}
		withAttempts(&options)
		list := func() error {
			_, err := options.Client.ListQueues(t.Context(), &sqs.ListQueuesInput{})
			return err
		}
		const open = 5
		ended := make(chan error, open)
		for range open {
			go func() { ended <- list() }()
		}
		synctest.Wait()
		close(gate)
		for range open {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		server.hush()
		began := time.Now()
		if err := list(); err != nil {
			t.Fatalf("a call over a dead connection: %v", err)
		}
		// One attempt, and the pause that the SDK makes before the next: far less than another.
		if took := time.Since(began); took < options.RequestTimeout || took > options.RequestTimeout+4*time.Second {
			t.Errorf("it took %v with %d dead connections, want one attempt of %v", took, open, options.RequestTimeout)
		}
		server.mu.Lock()
		defer server.mu.Unlock()
		if server.dialled != open+1 {
			t.Errorf("%d connections were made, want %d", server.dialled, open+1)
		}
	})
}
