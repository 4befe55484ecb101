package faults

import (
	"os"
	"testing"
	"time"
)

func TestWrong(t *testing.T) {
	folder, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	file, _ := os.Create(folder + "/a")
	file.Close()
}
