package sqstest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
)

// server is one of those that the checks run against, with where it differs.
type server struct {
	*sqs.Client
	oneOfAGroup   bool // a receive brings one message of a FIFO group
	acceptsStale  bool // a receipt handle of an earlier receive is accepted
	limitsNothing bool // no limit of size is enforced for a single message
}

func client(url string) *sqs.Client {
	return sqs.New(sqs.Options{
		BaseEndpoint: aws.String(url), Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""), RetryMaxAttempts: 1,
		HTTPClient: &http.Client{},
	})
}

// TestChecks holds this server to what two others do.
func TestChecks(t *testing.T) {
	checks := map[string]func(t *testing.T, s server){
		"a message arrives whole": arrivesWhole, "batches": batches, "visibility": visibility, "receipt handles": receiptHandles,
		"a FIFO group": fifoGroup, "deduplication": deduplicates, "redrive": redrives, "a long poll": longPoll, "limits": limits, "queues": queues,
	}
	for name, start := range map[string]func(t *testing.T) server{
		"sqstest": func(t *testing.T) server { return server{Client: client(sqstest.Start(t).URL())} },
		"ElasticMQ": func(t *testing.T) server {
			return server{Client: client(drivertest.Server(t, "TIDINGS_ELASTICMQ_URL")), limitsNothing: true}
		},
		"fauxqs": func(t *testing.T) server {
			return server{Client: client(drivertest.Server(t, "TIDINGS_FAUXQS_URL")), oneOfAGroup: true, acceptsStale: true}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			for check, run := range checks {
				t.Run(check, func(t *testing.T) {
					t.Parallel()
					run(t, s)
				})
			}
		})
	}
}

func (s server) create(t *testing.T, suffix string, attributes map[string]string) (url string) {
	t.Helper()
	name := fmt.Sprintf("check-%d%s", time.Now().UnixNano(), suffix)
	if strings.HasSuffix(name, ".fifo") {
		if attributes == nil {
			attributes = make(map[string]string)
		}
		attributes["FifoQueue"] = "true"
	}
	made, err := s.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.DeleteQueue(context.Background(), &sqs.DeleteQueueInput{QueueUrl: made.QueueUrl}); err != nil {
			t.Logf("DeleteQueue: %v", err)
		}
	})
	return *made.QueueUrl
}

func (s server) send(t *testing.T, url, group string, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		in := &sqs.SendMessageInput{QueueUrl: &url, MessageBody: &body}
		if group != "" {
			in.MessageGroupId, in.MessageDeduplicationId = &group, aws.String(group+body)
		}
		if _, err := s.SendMessage(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
}

func (s server) receive(t *testing.T, url string, wait int32) []types.Message {
	t.Helper()
	got, err := s.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{
		QueueUrl: &url, MaxNumberOfMessages: 10, WaitTimeSeconds: wait, MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return got.Messages
}

func (s server) visible(t *testing.T, url string, m types.Message, seconds int32) error {
	t.Helper()
	_, err := s.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: &url, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: seconds})
	return err
}

func (s server) delete(t *testing.T, url string, m types.Message) error {
	t.Helper()
	_, err := s.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: &url, ReceiptHandle: m.ReceiptHandle})
	return err
}

func bodies(messages []types.Message) string {
	var all []string
	for _, m := range messages {
		all = append(all, *m.Body)
	}
	return strings.Join(all, " ")
}

func arrivesWhole(t *testing.T, s server) {
	url := s.create(t, ".fifo", nil)
	sent, err := s.SendMessage(t.Context(), &sqs.SendMessageInput{
		QueueUrl: &url, MessageBody: aws.String("{\"a\":\"\u00e9 \\u0000\"}"), MessageGroupId: aws.String("g"), MessageDeduplicationId: aws.String("d"),
		MessageAttributes: map[string]types.MessageAttributeValue{"eventType": {DataType: aws.String("String"), StringValue: aws.String("a.b.c")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := s.receive(t, url, 5)
	if len(got) != 1 {
		t.Fatalf("%d messages", len(got))
	}
	m := got[0]
	if *m.MessageId != *sent.MessageId || *m.Body != "{\"a\":\"\u00e9 \\u0000\"}" || *m.MessageAttributes["eventType"].StringValue != "a.b.c" ||
		m.Attributes["MessageGroupId"] != "g" || m.Attributes["ApproximateReceiveCount"] != "1" {
		t.Errorf("got %+v", m)
	}
	at, err := strconv.ParseInt(m.Attributes["SentTimestamp"], 10, 64)
	if err != nil || time.Since(time.UnixMilli(at)).Abs() > time.Minute {
		t.Errorf("sent at %s: %v", m.Attributes["SentTimestamp"], err)
	}
}

func batches(t *testing.T, s server) {
	url := s.create(t, "", nil)
	entries := []types.SendMessageBatchRequestEntry{{Id: aws.String("good"), MessageBody: aws.String("1")}, {Id: aws.String("bad"), MessageBody: aws.String("2")}}
	entries[1].MessageAttributes = make(map[string]types.MessageAttributeValue)
	for n := range 11 {
		entries[1].MessageAttributes[fmt.Sprint("a", n)] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String("x")}
	}
	sent, err := s.SendMessageBatch(t.Context(), &sqs.SendMessageBatchInput{QueueUrl: &url, Entries: entries})
	switch {
	case err != nil:
		t.Logf("an eleventh attribute refuses the whole batch here: %v", err)
	case len(sent.Successful)+len(sent.Failed) != 2:
		t.Errorf("successful %d, failed %d", len(sent.Successful), len(sent.Failed))
	}
	if s.Client != nil && err == nil && len(sent.Failed) == 1 && *sent.Failed[0].Id != "bad" {
		t.Errorf("failed: %+v", sent.Failed[0])
	}
	s.send(t, url, "", "3")
	for _, m := range s.receive(t, url, 1) {
		done, err := s.DeleteMessageBatch(t.Context(), &sqs.DeleteMessageBatchInput{QueueUrl: &url, Entries: []types.DeleteMessageBatchRequestEntry{
			{Id: aws.String("a"), ReceiptHandle: m.ReceiptHandle}, {Id: aws.String("b"), ReceiptHandle: aws.String("bogus")},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if !s.acceptsStale && (len(done.Successful) != 1 || len(done.Failed) != 1 || *done.Failed[0].Id != "b") {
			t.Errorf("%d successful, failed %+v", len(done.Successful), done.Failed)
		}
	}
	var many []types.SendMessageBatchRequestEntry
	for n := range 11 {
		many = append(many, types.SendMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(n)), MessageBody: aws.String("x")})
	}
	var tooMany *types.TooManyEntriesInBatchRequest
	if _, err := s.SendMessageBatch(t.Context(), &sqs.SendMessageBatchInput{QueueUrl: &url, Entries: many}); !errors.As(err, &tooMany) {
		t.Errorf("eleven entries: %v", err)
	}
}

func visibility(t *testing.T, s server) {
	url := s.create(t, "", map[string]string{"VisibilityTimeout": "2"})
	s.send(t, url, "", "1")
	first := s.receive(t, url, 5)
	if len(first) != 1 || len(s.receive(t, url, 0)) != 0 {
		t.Fatal("not given once")
	}
	began := time.Now()
	if err := s.visible(t, url, first[0], 4); err != nil {
		t.Fatal(err)
	}
	again := s.receive(t, url, 10)
	if took := time.Since(began); len(again) != 1 || took < 3500*time.Millisecond {
		t.Fatalf("%d messages after %v, want one after 4 s", len(again), took)
	}
	if again[0].Attributes["ApproximateReceiveCount"] != "2" {
		t.Errorf("received %s times", again[0].Attributes["ApproximateReceiveCount"])
	}
	if err := s.visible(t, url, again[0], 0); err != nil {
		t.Fatal(err)
	}
	if len(s.receive(t, url, 2)) != 1 {
		t.Error("not given back at once")
	}
}

func receiptHandles(t *testing.T, s server) {
	if s.acceptsStale { // fauxqs takes any handle
		return
	}
	url := s.create(t, "", nil)
	s.send(t, url, "", "1")
	first := s.receive(t, url, 5)
	if err := s.visible(t, url, first[0], 0); err != nil {
		t.Fatal(err)
	}
	second := s.receive(t, url, 5)
	if err := s.delete(t, url, first[0]); err == nil {
		t.Error("a receipt handle of an earlier receive is accepted")
	}
	if err := s.delete(t, url, second[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.delete(t, url, second[0]); err == nil {
		t.Error("a second delete is accepted")
	}
}

// A group is blocked while one of its messages is in flight; others are not.
func fifoGroup(t *testing.T, s server) {
	url := s.create(t, ".fifo", map[string]string{"VisibilityTimeout": "2"})
	s.send(t, url, "a", "a1", "a2", "a3")
	s.send(t, url, "b", "b1")
	var all []types.Message
	for len(all) < 4 {
		got := s.receive(t, url, 1)
		if len(got) == 0 {
			break
		}
		all = append(all, got...)
	}
	if s.oneOfAGroup {
		if got := bodies(all); got != "a1 b1" {
			t.Fatalf("got %s", got)
		}
	} else if got := bodies(all); got != "a1 a2 a3 b1" {
		t.Fatalf("got %s", got)
	}
	for _, m := range all { // given back as a whole, they come again in order
		if err := s.visible(t, url, m, 0); err != nil {
			t.Fatal(err)
		}
	}
	next := ""
	for tries := 0; next != "a1 a2 a3" && tries < 10; tries++ {
		for _, m := range s.receive(t, url, 1) {
			if strings.HasPrefix(*m.Body, "a") {
				next = strings.TrimSpace(next + " " + *m.Body)
			}
			if err := s.delete(t, url, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	if next != "a1 a2 a3" {
		t.Errorf("came again as %q", next)
	}
}

func deduplicates(t *testing.T, s server) {
	url := s.create(t, ".fifo", nil)
	s.send(t, url, "a", "1", "1", "2")
	count := 0
	for {
		got := s.receive(t, url, 1)
		for _, m := range got {
			count++
			if err := s.delete(t, url, m); err != nil {
				t.Fatal(err)
			}
		}
		if len(got) == 0 {
			break
		}
	}
	if count != 2 {
		t.Errorf("%d messages, want 2", count)
	}
}

func redrives(t *testing.T, s server) {
	dead := s.create(t, "-dead", nil)
	about, err := s.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: &dead, AttributeNames: []types.QueueAttributeName{"QueueArn"}})
	if err != nil {
		t.Fatal(err)
	}
	url := s.create(t, "", map[string]string{"RedrivePolicy": fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":"2"}`, about.Attributes["QueueArn"])})
	s.send(t, url, "", "1")
	for range 2 {
		for _, m := range s.receive(t, url, 2) {
			if err := s.visible(t, url, m, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := s.receive(t, url, 1); len(got) != 0 {
		t.Errorf("received a third time")
	}
	if got := s.receive(t, dead, 2); bodies(got) != "1" {
		t.Errorf("in the dead letter queue: %q", bodies(got))
	}
}

func longPoll(t *testing.T, s server) {
	url := s.create(t, "", nil)
	got := make(chan []types.Message, 1)
	began := time.Now()
	go func() { got <- s.receive(t, url, 10) }()
	timer := time.NewTimer(200 * time.Millisecond)
	<-timer.C
	s.send(t, url, "", "1")
	if messages := <-got; bodies(messages) != "1" || time.Since(began) > 5*time.Second {
		t.Errorf("got %q after %v", bodies(messages), time.Since(began))
	}
}

func limits(t *testing.T, s server) {
	url := s.create(t, "", nil)
	if s.limitsNothing { // ElasticMQ does not enforce MaximumMessageSize
		return
	}
	if _, err := s.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &url, MessageBody: aws.String(strings.Repeat("x", 1<<20+1))}); err == nil {
		t.Error("more than 1 MiB is accepted")
	}
	if _, err := s.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &url, MessageBody: aws.String(strings.Repeat("x", 1<<20))}); err != nil {
		t.Errorf("1 MiB: %v", err)
	}
}

func queues(t *testing.T, s server) {
	url := s.create(t, "-named", nil)
	name := url[strings.LastIndexByte(url, '/')+1:]
	found, err := s.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: &name})
	if err != nil || !strings.HasSuffix(*found.QueueUrl, "/"+name) {
		t.Errorf("GetQueueUrl: %v", err)
	}
	_, err = s.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("none-of-that-name")})
	var missing *types.QueueDoesNotExist
	var refused smithy.APIError
	known := errors.As(err, &missing) || errors.As(err, &refused) && strings.HasSuffix(refused.ErrorCode(), "NonExistentQueue")
	if !known {
		t.Errorf("a queue that does not exist: %v", err)
	}
	all, err := s.ListQueues(t.Context(), &sqs.ListQueuesInput{QueueNamePrefix: &name})
	if err != nil || len(all.QueueUrls) != 1 {
		t.Errorf("ListQueues: %v, %v", all, err)
	}
	if _, err := s.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: &url, Attributes: map[string]string{"VisibilityTimeout": "7"}}); err != nil {
		t.Fatal(err)
	}
	about, err := s.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil || about.Attributes["VisibilityTimeout"] != "7" {
		t.Errorf("attributes %v: %v", about, err)
	}
}
