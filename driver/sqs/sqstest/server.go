package sqstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// Server is a running server. All methods may be called at once.
type Server struct {
	http *httptest.Server

	mu     sync.Mutex
	queues map[string]*queue
	calls  map[string]int
	fail   func(action string) error
	refuse func(body string) error
	ids    int
	closed chan struct{}
}

// Start starts a server without queues; the test's end stops it.
func Start(t testing.TB) *Server {
	s := &Server{queues: make(map[string]*queue), calls: make(map[string]int), closed: make(chan struct{})}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		close(s.closed) // ends long polls
		s.http.Close()
	})
	return s
}

// URL is the endpoint: the BaseEndpoint of a client. Region and credentials may be
// anything.
func (s *Server) URL() string { return s.http.URL }

// Calls returns how often an action was called, such as "SendMessageBatch".
func (s *Server) Calls(action string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[action]
}

// ResetCalls sets the counts to 0.
func (s *Server) ResetCalls() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.calls)
}

// Fail makes the server ask f before every action: an error of it is the answer. A
// nil f ends that. An [Error] is answered as it is, any other with status 500.
func (s *Server) Fail(f func(action string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// RefuseMessages makes the server ask f before it stores a message: with an [Error]
// of it that message is refused, and the others of its batch are not. A nil f ends
// that.
func (s *Server) RefuseMessages(f func(body string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

// Error is an answer that says why an action was refused.
type Error struct {
	Code    string // without a namespace, such as "QueueDoesNotExist"
	Message string
}

// Error returns code and message.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

func refuse(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// oldCodes are what the query protocol called some errors; the SDK knows errors by
// them.
var oldCodes = map[string]string{
	"QueueDoesNotExist":            "AWS.SimpleQueueService.NonExistentQueue",
	"QueueNameExists":              "QueueAlreadyExists",
	"TooManyEntriesInBatchRequest": "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
	"EmptyBatchRequest":            "AWS.SimpleQueueService.EmptyBatchRequest",
	"BatchEntryIdsNotDistinct":     "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
	"BatchRequestTooLong":          "AWS.SimpleQueueService.BatchRequestTooLong",
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 16<<20))
	if err != nil {
		return // the client is gone
	}
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	s.mu.Lock()
	s.calls[action]++
	fail := s.fail
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	var answer any
	if fail != nil {
		err = fail(action)
	}
	if err == nil {
		answer, err = s.act(r, action, body)
	}
	if err == nil {
		_ = json.NewEncoder(w).Encode(answer)
		return
	}
	var refused *Error
	if !errors.As(err, &refused) {
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#InternalFailure", "message": err.Error()})
		return
	}
	old := oldCodes[refused.Code]
	if old == "" {
		old = refused.Code
	}
	w.Header().Set("X-Amzn-Query-Error", old+";Sender")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#" + refused.Code, "message": refused.Message})
}

func (s *Server) act(r *http.Request, action string, body []byte) (any, error) {
	var in input
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, refuse("SerializationException", "%v", err)
	}
	if action == "ReceiveMessage" { // it waits, so it locks by itself
		return s.receive(r, &in)
	}
	actions := map[string]func(*input) (any, error){
		"CreateQueue": s.createQueue, "GetQueueUrl": s.getQueueURL, "ListQueues": s.listQueues, "DeleteQueue": s.deleteQueue, "PurgeQueue": s.purgeQueue,
		"GetQueueAttributes": s.getQueueAttributes, "SetQueueAttributes": s.setQueueAttributes,
		"TagQueue": s.tagQueue, "UntagQueue": s.untagQueue, "ListQueueTags": s.listQueueTags,
		"SendMessage": s.sendMessage, "SendMessageBatch": s.sendMessageBatch,
		"DeleteMessage": s.deleteMessage, "DeleteMessageBatch": s.deleteMessageBatch,
		"ChangeMessageVisibility": s.changeVisibility, "ChangeMessageVisibilityBatch": s.changeVisibilityBatch,
	}
	do, known := actions[action]
	if !known {
		return nil, refuse("UnsupportedOperation", "sqstest has no %s", action)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return do(&in)
}

// input has every field that any action has.
type input struct {
	QueueName       string
	QueueNamePrefix string
	QueueURL        string `json:"QueueUrl"`
	Attributes      map[string]string
	AttributeNames  []string
	Tags            map[string]string
	TagKeys         []string

	MessageBody            string
	MessageAttributes      map[string]attribute
	MessageGroupID         string `json:"MessageGroupId"`
	MessageDeduplicationID string `json:"MessageDeduplicationId"`

	MaxNumberOfMessages int
	WaitTimeSeconds     int
	VisibilityTimeout   *int
	ReceiptHandle       string

	Entries []entry
}

type entry struct {
	ID                     string `json:"Id"`
	MessageBody            string
	MessageAttributes      map[string]attribute
	MessageGroupID         string `json:"MessageGroupId"`
	MessageDeduplicationID string `json:"MessageDeduplicationId"`
	ReceiptHandle          string
	VisibilityTimeout      *int
}

type attribute struct {
	DataType    string
	StringValue string `json:",omitempty"`
	BinaryValue []byte `json:",omitempty"`
}

func (a attribute) size(name string) int {
	return len(name) + len(a.DataType) + len(a.StringValue) + len(a.BinaryValue)
}
